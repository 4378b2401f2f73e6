// Checks /health and /status against the contract of the earlier system: names, types, times with
// a zone. Further fields are welcome.
//
//   node pages.js URL HEALTHY TOTAL
"use strict";
const assert = require("node:assert");

const isTime = (t) => /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/.test(t);
const time = (o, name, maybe) =>
  assert.ok((maybe && o[name] === null) || isTime(o[name]), `${name}: ${o[name]}`);
const typed = (o, types, where) => {
  for (const [name, type] of Object.entries(types))
    assert.strictEqual(typeof o[name], type, `${where}.${name} is ${JSON.stringify(o[name])}`);
};

async function main(url, healthy, total) {
  const health = await fetch(`${url}/health`);
  const h = await health.json();
  assert.strictEqual(health.status, healthy > 0 ? 200 : 503);
  assert.strictEqual(h.status, healthy > 0 ? "healthy" : "unhealthy");
  typed(h, { strategy: "string" }, "health");
  time(h, "timestamp");
  assert.ok(Array.isArray(h.instances));
  assert.strictEqual(h.instances.length, total);
  assert.strictEqual(h.instances.filter((i) => i.healthy).length, healthy);
  for (const i of h.instances) {
    typed(i, { name: "string", url: "string", healthy: "boolean", priority: "number",
      failure_count: "number", request_count: "number" }, "health.instances");
    time(i, "last_check", true);
  }

  const status = await fetch(`${url}/status`);
  const s = await status.json();
  assert.strictEqual(status.status, 200);
  typed(s.load_balancer, { strategy: "string", check_interval: "number",
    failure_threshold: "number", request_timeout: "number", total_requests: "number" },
  "load_balancer");
  typed(s.summary, { healthy_instances: "number", total_instances: "number",
    current_strategy: "string" }, "summary");
  time(s, "timestamp");
  assert.strictEqual(s.summary.healthy_instances, healthy);
  assert.strictEqual(s.summary.total_instances, total);
  assert.strictEqual(s.summary.current_strategy, s.load_balancer.strategy);
  assert.strictEqual(s.instances.length, total);
  for (const i of s.instances) {
    typed(i, { name: "string", url: "string", healthy: "boolean", priority: "number",
      failure_count: "number", request_count: "number", request_percentage: "number" },
    "status.instances");
    time(i, "last_check", true);
    time(i, "last_failure", true);
    assert.ok(Array.isArray(i.collections_unhealthy));
  }
  const percent = s.instances.reduce((sum, i) => sum + i.request_percentage, 0);
  assert.ok(percent === 0 || Math.abs(percent - 100) < 0.5, `${percent} %`);
  assert.deepStrictEqual(s.instances.map((i) => [i.name, i.priority]).slice(0, 2),
    [["primary", 100], ["replica", 80]].slice(0, total));
}

main(process.argv[2], Number(process.argv[3]), Number(process.argv[4])).catch((e) => {
  console.error(e);
  process.exit(1);
});
