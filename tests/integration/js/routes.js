// Every route that the server's own description (/openapi.json) names is one that chromux knows: it
// is answered by the server, with the status that it gives directly, and never by chromux.
//
//   node routes.js THROUGH DIRECT
"use strict";
const assert = require("node:assert");

// Nothing with these names exists, so that no request changes anything.
const fill = (template) =>
  template.replace(/\{(\w+)\}/g, (_, name) =>
    name === "collection_id" ? "00000000-0000-4000-8000-000000000000"
      : name === "crn" ? "no:such:collection" : "no_such_thing");

const ask = (url, path, method) =>
  fetch(url + fill(path), {
    method: method.toUpperCase(),
    ...(method === "get" || method === "delete" ? {}
      : { body: "{", headers: { "content-type": "application/json" } }),
  });

async function main(through, direct) {
  const { paths } = await (await fetch(`${direct}/openapi.json`)).json();
  let routes = 0;
  for (const [path, methods] of Object.entries(paths))
    for (const method of Object.keys(methods)) {
      const what = `${method} ${path}`;
      routes++;
      const ours = await ask(through, path, method);
      const text = await ours.text();
      // A single server drops the connection at this one.
      if (path.includes("{crn}")) {
        assert.strictEqual(ours.status, 502, what);
        continue;
      }
      assert.notStrictEqual(ours.headers.get("x-chromux-instance"), "-", `${what}: ${text}`);
      assert.strictEqual(ours.status, (await ask(direct, path, method)).status, what);
    }
  assert.ok(routes > 20, `${routes} routes`);
}

main(process.argv[2], process.argv[3]).catch((e) => {
  console.error(e);
  process.exit(1);
});
