// node transformers_js.mjs PARENT_FOLDER NAME POOLING DTYPE, with a JSON list of sentences on stdin: prints their
// embeddings as JSON. It runs where @huggingface/transformers is installed (compat.py).
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const [parent, name, pooling, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = parent;
const extractor = await pipeline("feature-extraction", name, { dtype });
const embeddings = await extractor(JSON.parse(readFileSync(0, "utf8")), { pooling });
console.log(JSON.stringify(embeddings.tolist()));
