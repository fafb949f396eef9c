// Rewrites a JSON file with npm's write-file-atomic, which syncs a temporary file and renames it.
const writeFileAtomic = require("write-file-atomic");
const { keys, mark, rows } = require("./rows.js");
for (const key of keys) {
  mark("intent", key);
  writeFileAtomic.sync("rows.json", rows(key));
  mark("ack", key);
}
