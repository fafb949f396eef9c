// What both programs write, and how they say what they promise.
const fs = require("fs");
const last = Number(process.argv[2]);
exports.keys = Array.from({ length: last }, (_, index) => index + 1);
exports.rows = (key) => JSON.stringify(exports.keys.slice(0, key).map((each) => [each, "x".repeat(5000)]));
exports.mark = (kind, key) =>
  fs.appendFileSync(process.env.CHAOS_MARKS, `\n${JSON.stringify({ kind, operation: "put", key })}\n`);
