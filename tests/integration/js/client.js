// Does everything that Chroma's client can do with collections and records, through one URL, and
// checks each result against what the same client reads from another URL.
//
//   node client.js THROUGH DIRECT
//
// Vectors are passed in: no embedding function is needed.
"use strict";
const assert = require("node:assert");
const { ChromaClient } = require("chromadb");

const clientFor = (url) => {
  const { hostname, port } = new URL(url);
  return new ChromaClient({ host: hostname, port: Number(port), ssl: false });
};

const vector = (n) => Array.from({ length: 8 }, (_, i) => ((n * 37 + i * 11) % 101) / 8);
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

// Order of metadata keys and of unordered results is the server's choice.
const records = (r) =>
  r.ids
    .map((id, i) => ({
      id,
      document: r.documents?.[i] ?? null,
      metadata: Object.entries(r.metadatas?.[i] ?? {}).sort(),
      embedding: r.embeddings?.[i] ?? null,
    }))
    .sort((a, b) => (a.id < b.id ? -1 : 1));

async function main(through, direct) {
  const ours = clientFor(through), theirs = clientFor(direct);
  assert.ok((await ours.heartbeat()) > 0);
  assert.strictEqual(await ours.version(), await theirs.version());

  const name = "everything";
  const made = await ours.createCollection({
    name, embeddingFunction: null, metadata: { origin: "test" },
  });
  const there = await theirs.getCollection({ name, embeddingFunction: null });
  assert.strictEqual(made.id, there.id);
  await assert.rejects(ours.createCollection({ name, embeddingFunction: null }));
  const again = await ours.getOrCreateCollection({ name, embeddingFunction: null });
  assert.strictEqual(again.id, made.id);
  assert.strictEqual(await ours.countCollections(), 1);

  const same = async (what) => {
    const include = ["documents", "metadatas", "embeddings"];
    const a = await made.get({ include, limit: 1000 });
    const b = await there.get({ include, limit: 1000 });
    assert.deepStrictEqual(records(a), records(b), what);
    assert.strictEqual(await made.count(), await there.count(), what);
    return records(a);
  };

  const ids = range(0, 200).map((n) => `id-${n}`);
  await made.add({
    ids,
    embeddings: range(0, 200).map(vector),
    documents: range(0, 200).map((n) => `text ${n} äöü "quoted" \u2028`),
    metadatas: range(0, 200).map((n) => ({ n, half: n / 2, even: n % 2 === 0, group: `g${n % 4}` })),
  });
  assert.strictEqual((await same("after add")).length, 200);

  await made.upsert({
    ids: ["id-0", "new-1"], embeddings: [vector(500), vector(501)],
    documents: ["changed", "fresh"], metadatas: [{ n: -1 }, { n: 1 }],
  });
  assert.strictEqual((await same("after upsert")).length, 201);

  await made.update({
    ids: ["id-1"], embeddings: [vector(502)], documents: ["updated"], metadatas: [{ touched: true }],
  });
  await made.update({ ids: ["id-2"], metadatas: [{ touched: true }] });
  const after = await same("after update");
  assert.strictEqual(after.find((r) => r.id === "id-1").document, "updated");

  const found = await made.get({ where: { group: "g3" }, limit: 5, offset: 2 });
  const found2 = await there.get({ where: { group: "g3" }, limit: 5, offset: 2 });
  assert.deepStrictEqual(found.ids, found2.ids);
  assert.strictEqual(found.ids.length, 5);
  assert.deepStrictEqual((await made.get({ ids: ["id-7"] })).ids, ["id-7"]);
  const text = await made.get({ whereDocument: { $contains: "text 19" } });
  assert.strictEqual(text.ids.length, 11);

  for (const n of [3, 77, 142]) {
    const query = { queryEmbeddings: [vector(n), vector(n + 1)], nResults: 3 };
    const a = await made.query(query), b = await there.query(query);
    assert.deepStrictEqual(a.ids, b.ids);
    assert.deepStrictEqual(a.distances, b.distances);
    assert.deepStrictEqual(a.documents, b.documents);
    assert.strictEqual(a.ids.length, 2);
    assert.strictEqual(a.distances[0][0], 0);
  }

  await made.delete({ ids: ["id-5", "id-6"] });
  await made.delete({ where: { group: "g1" } });
  const left = await same("after delete");
  assert.ok(!left.some((r) => r.id === "id-5" || r.id === "id-9"));
  assert.ok(left.some((r) => r.id === "id-4"));

  await made.modify({ name: "renamed", metadata: { origin: "modified" } });
  const renamed = await theirs.getCollection({ name: "renamed", embeddingFunction: null });
  assert.strictEqual(renamed.id, made.id);
  assert.deepStrictEqual(
    (await ours.listCollections()).map((c) => [c.name, c.id]),
    (await theirs.listCollections()).map((c) => [c.name, c.id]));

  // A refusal is Chroma's own: the same kind and the same words.
  const refusal = (c) => c.add({ ids: ["x"], embeddings: [[1, 2]] }).then(
    () => assert.fail("a wrong dimension was taken"), (e) => [e.name, e.message.replace(/:\d+\//, "/")]);
  assert.deepStrictEqual(await refusal(made), await refusal(there));

  await ours.deleteCollection({ name: "renamed" });
  assert.strictEqual(await theirs.countCollections(), 0);
  await assert.rejects(made.count());
}

main(process.argv[2], process.argv[3]).catch((e) => {
  console.error(e);
  process.exit(1);
});
