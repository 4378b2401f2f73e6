-- Whether a copy still has its vectors (lua/lb/sound.lua, torn.lua), with stand-ins for the lane and the servers. They
-- need chromux's slice and records, so under plain busted they are pending.
local json = require("cjson.safe")

local GLOBALS = { "now", "sleep", "spawn", "log", "json" }

local it_ = pcall(require, "chromux.records") and require("chromux.slice").members and it or pending
local saved, tasks, time, breaths

local function silent() end

local function set_up()
  saved, tasks, time, breaths = {}, {}, 1000, 0
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  rawset(_G, "now", function() return time end)
  rawset(_G, "sleep", function(seconds)
    time = time + seconds
    if seconds == 0 then breaths = breaths + 1 end
  end)
  rawset(_G, "spawn", function(fn, ...) tasks[#tasks + 1] = { fn, ... } end)
  rawset(_G, "log", { debug = silent, info = silent, warn = silent, error = function(_, text) error(text, 0) end })
  rawset(_G, "json", json)
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
end

-- records: {{id=, vector= (text; nil: it is lost), doc=}, ...}, as a server shows them.
local function server(records)
  local s = { admitted = 1, asked = 0 }
  function s.usable() return true end
  s.readable = s.usable
  function s.ask(_, method, target, body)
    s.asked = s.asked + 1
    if method == "GET" and target:find("/count$") then return { status = 200, body = tostring(#records) } end
    local b = json.decode(body)
    local wanted, with, ids, vectors, docs = {}, table.concat(b.include, ","), {}, {}, {}
    for _, id in ipairs(b.ids or {}) do wanted[id] = true end
    for i, r in ipairs(records) do
      if (not b.ids or wanted[r.id]) and i > (b.offset or 0) and (not b.limit or #ids < b.limit) then
        if with:find("embeddings") and not r.vector then return { status = 500, body = "Error finding id" } end
        ids[#ids + 1] = '"' .. r.id .. '"'
        vectors[#ids], docs[#ids] = r.vector or "null", r.doc and '"' .. r.doc .. '"' or "null"
      end
    end
    local function column(name, list) return with:find(name) and "[" .. table.concat(list, ",") .. "]" or "null" end
    return { status = 200, body = '{"ids":[' .. table.concat(ids, ",") .. '],"embeddings":'
      .. column("embeddings", vectors) .. ',"documents":' .. column("documents", docs) .. ',"metadatas":null}' }
  end
  return s
end

-- Copy a stands before the first of the entries, and may have been sent all up to `doubt`; b has them all.
local function found(entries, doubt, on_a, on_b)
  local marked
  local lane = { logical = "L", open = true, head = #entries, context = { holder = true }, publish = silent,
    kick_copy = silent, entry = function(_, n) return entries[n] end,
    target = function(_, _, rest) return "/c" .. rest end,
    mark = function(_, copy, state) marked, copy.state = state, state end }
  for n, e in ipairs(entries) do e.n, e.verdict = n, e.verdict or "applied" end
  local a = { instance = "a", physical = "p", state = "ready", p = 0, doubt = doubt, server = server(on_a) }
  local b = { instance = "b", physical = "p", state = "ready", p = #entries, doubt = 0, server = server(on_b) }
  lane.order = { a, b }
  local sound = require("lb.sound")
  sound.look(lane, a, function() return "/c" end, true)
  for _, task in ipairs(tasks) do task[1](unpack(task, 2)) end
  return marked or (sound.known(a) and "whole"), a.server
end

-- An add, upsert or update of x, with a document unless it is an update.
local function entry(action, vector)
  return { action = action, body = '{"ids":["x"],"embeddings":[' .. vector .. "]"
    .. (action == "update" and "}" or ',"documents":["text"]}') }
end

describe("a record without a vector", function()
  before_each(set_up)
  after_each(tear_down)

  local bare = { { id = "x", doc = "text" } }
  local function shown(vector) return { { id = "x", vector = vector, doc = "text" } } end

  it_("is lost when nothing is in doubt", function()
    assert.equals("rebuild", (found({ entry("add", "[1,2]") }, 0, bare, shown("[1,2]"))))
  end)

  it_("is what an add in doubt left when another copy has what the add gives", function()
    assert.equals("whole", (found({ entry("add", "[1,2]") }, 1, bare, shown("[1,2]"))))
    assert.equals("rebuild", (found({ entry("add", "[1,2]") }, 1, bare, shown("[3,4]")))) -- it stood there before
    assert.equals("rebuild", (found({ entry("add", "[1,2]") }, 1, { { id = "x", doc = "else" } }, shown("[1,2]"))))
  end)

  -- 0.1 and 0.2 as 32-bit floats; 0.099999994 is the float below 0.1, 0.0999999 is 13 below.
  it_("is that however the add spells its vector and a cosine collection shows it", function()
    for _, vector in ipairs { "[0.1,0.2]", '"zczMPc3MTD4="' } do
      local add = { entry("add", vector) }
      assert.equals("whole", (found(add, 1, bare, shown("[0.1,0.2]"))), vector)
      assert.equals("whole", (found(add, 1, bare, shown("[0.099999994,0.2]"))), vector)
      assert.equals("rebuild", (found(add, 1, bare, shown("[0.0999999,0.2]"))), vector)
      assert.equals("rebuild", (found(add, 1, bare, shown("[0.1,-0.2]"))), vector)
      assert.equals("rebuild", (found(add, 1, bare, shown("[0.1]"))), vector)
    end
  end)

  -- 1e-45 (the least float), -3.4028235e38, -0.0, 1.5; and NaN, as old servers show it.
  it_("is that with any float", function()
    for sent, vector in pairs { ['"AQAAAP//f/8AAACAAADAPw=="'] = "[1e-45,-3.4028235e38,-0.0,1.5]",
      ['"AAAAAAAAwH8="'] = "[0.0,null]" } do
      assert.equals("whole", (found({ entry("add", sent) }, 1, bare, shown(vector))), vector)
    end
  end)

  it_("is that when later entries replace what the add gives", function()
    local function with(later, on_b) return (found({ entry("add", "[1,2]"), later }, 1, bare, on_b)) end
    assert.equals("whole", with(entry("upsert", "[3,4]"), shown("[3,4]")))
    assert.equals("whole", with(entry("update", "[3,4]"), shown("[3,4]")))
    assert.equals("whole", with({ action = "delete", body = '{"ids":["x"]}' }, {}))
    assert.equals("whole", with({ action = "delete", body = '{"where":{"k":1}}', resolved = '["x"]' }, {}))
    assert.equals("whole", with({ action = "update", body = '{"ids":["y","x"],"embeddings":[null,[3,4]]}' },
      shown("[3,4]")))
  end)

  it_("is lost when no later entry explains what the other copy has", function()
    local function with(later) return (found({ entry("add", "[1,2]"), later }, 1, bare, shown("[3,4]"))) end
    assert.equals("rebuild", with(entry("update", "null")))
    assert.equals("rebuild", with { action = "update", body = '{"ids":["y","x"],"embeddings":[[3,4],null]}' })
    assert.equals("rebuild", with { action = "update", body = '{"ids":["x"],"documents":["text"]}' })
    assert.equals("rebuild", with { action = "delete", body = '{"ids":["y"]}' })
    local refused = entry("upsert", "[3,4]")
    refused.verdict = "rejected"
    assert.equals("rebuild", with(refused))
  end)

  it_("costs a large add that has many of them to be taken apart once", function()
    local slice = require("chromux.slice")
    local ids, vectors, docs, on_a, on_b = {}, {}, {}, {}, {}
    for i = 1, 3000 do
      local id = "r" .. i
      ids[i], vectors[i], docs[i] = '"' .. id .. '"', "[1,2]", '"' .. ("x"):rep(400) .. '"'
      on_a[i], on_b[i] = { id = id, doc = ("x"):rep(400) }, { id = id, vector = "[1,2]", doc = "" }
    end
    local body = '{"ids":[' .. table.concat(ids, ",") .. '],"embeddings":[' .. table.concat(vectors, ",")
      .. '],"documents":[' .. table.concat(docs, ",") .. "]}"
    local members, taken = slice.members, 0
    slice.members = function(text)
      taken = taken + (#text == #body and 1 or 0)
      return members(text)
    end
    local is, a = found({ { action = "add", body = body } }, 1, on_a, on_b)
    slice.members = members
    assert.equals("whole", is)
    assert.equals(1, taken)
    assert.is_true(breaths >= 2)
    assert.is_true(a.asked <= 4 + 2 * 150)
  end)
end)
