// usage: node hcl2json.js NODE_MODULES FILE    prints the file as JSON, or fails where it does not parse.
const { readFileSync } = require("fs");
const [modules, file] = process.argv.slice(2);
const { parse } = require(`${modules}/@cdktf/hcl2json`);
parse(file, readFileSync(file, "utf8")).then(
  (json) => console.log(JSON.stringify(json)),
  (error) => {
    console.error(`${file}: ${error.message ?? error}`);
    process.exit(1);
  },
);
