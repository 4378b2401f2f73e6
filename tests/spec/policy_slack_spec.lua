-- The shipped slack.lua: how a message reads, and that Slack takes it. Limits are checked by kit.load, as by the core.
local kit = require("lb.testkit")
local contract = require("lb.contract")
local json = require("cjson")
local PATH = "policies/slack.lua"

local policy = kit.load(PATH)
local linked = kit.load(PATH, { settings = { PUBLIC_URL = "https://chromux.example/", DEPLOYMENT_NAME = "prod <1>" } })

local function text_of(payload)
  local parts = {}
  local function collect(v)
    if type(v) == "table" then
      if type(v.text) == "string" then
        parts[#parts + 1] = v.text
      end
      for key, inner in pairs(v) do
        if key ~= "text" or type(inner) == "table" then
          collect(inner)
        end
      end
    end
  end
  collect(payload.blocks)
  return table.concat(parts, "\n")
end

local function has(payload, text)
  assert.truthy(text_of(payload):find(text, 1, true), text .. " is not in\n" .. text_of(payload))
end

local function header(payload)
  assert.equal("header", payload.blocks[1].type)
  return payload.blocks[1].text.text
end

describe("the guide's message", function()
  local function message(kind, urgency)
    return policy.format(kit.event(kind, { urgency = urgency }))
  end

  it("is headed by urgency", function()
    assert.equal("🚨 ChromaDB Upgrade Needed: memory of a", header(message("recommendation_opened", "high")))
    assert.equal("⚠️ ChromaDB Upgrade Needed: memory of a", header(message("recommendation_opened", "medium")))
    assert.equal("ℹ️ ChromaDB Upgrade Needed: memory of a", header(message("recommendation_opened", "low")))
  end)

  it("has its fields", function()
    local payload = message("recommendation_opened", "medium")
    has(payload, "*Reason*\nmemory over 85 %")
    has(payload, "*Current usage*\n88.2 %")
    has(payload, "*Recommended plan*\nstandard")
    has(payload, "*Monthly cost*\n$21")
    has(payload, "*Urgency*\nmedium")
    has(payload, "*Instance*\na")
    assert.truthy(payload.text:find("⚠️ ChromaDB Upgrade Needed", 1, true))
    assert.truthy(payload.text:find("memory over 85 %", 1, true))
  end)

  it("does not say the reason twice", function()
    local payload = policy.format(kit.event("recommendation_opened", { text = "memory over 85 %" }))
    local _, times = require("cjson").encode(payload.blocks):gsub("memory over 85 %%", "")
    assert.equal(1, times)
  end)

  it("reads figures that came as text", function()
    local payload = policy.format(kit.event("recommendation_opened", {
      fields = { { "current_usage", "88.2" }, { "estimated_monthly_cost", "21" } },
    }))
    has(payload, "*Current usage*\n88.2 %")
    has(payload, "*Monthly cost*\n$21")
  end)
end)

describe("every kind", function()
  it("has words of its own and is a message that Slack takes", function()
    for _, kind in ipairs(contract.kinds) do
      local payload = policy.format(kit.event(kind[1], { title = "as raised" }))
      assert.is_nil(header(payload):find("as raised", 1, true), kind[1])
      assert.is_nil(header(payload):find("{", 1, true), kind[1])
      assert.equal(payload.text, json.decode(json.encode(payload)).text)
    end
  end)

  it("that ends something says how long it lasted", function()
    local e = kit.event("server_up", { since = 1700000000 - 150, now = 1700000000 + 5 })
    local payload = policy.format(e)
    assert.equal("✅ Server a is up again", header(payload))
    has(payload, "*Lasted*\n2 min")
    has(payload, "*Cause*\n3 probes failed: connection refused")
    assert.truthy(payload.text:find("Lasted: 2 min", 1, true))
  end)

  it("that goes on says since when, and what to do", function()
    local e = kit.event("server_down", { since = 1700000000, now = 1700000000 + 7200, repeats = 3, openings = 2 })
    local payload = policy.format(e)
    has(payload, "*Since*\n<!date^1700000000^{date_short_pretty} {time_secs}|2023-11-14 22:13:20 UTC> (2.0 h)")
    has(payload, "*Not told before*\n3 times")
    has(payload, "*Began within the last hour*\n2 times")
    has(payload, "The other servers carry on. Look at its log")
    assert.truthy(payload.text:find("Since: 2023-11-14 22:13:20 UTC (2.0 h)", 1, true))
    assert.is_nil(text_of(policy.format(kit.event("server_down"))):find("UTC> (", 1, true))
    assert.is_nil(text_of(policy.format(kit.event("failover"))):find("Since", 1, true)) -- it does not last
  end)

  it("says so when no server is left", function()
    local e = kit.event("server_down", { fields = { { "instance", "a" }, { "servers_up", "0 of 2" } } })
    has(policy.format(e), "No server is up: requests are refused until one is. Look at")
    e.fields = { { "instance", "a" } }
    has(policy.format(e), "Look at its log")
    assert.is_nil(text_of(policy.format(e)):find("carry on", 1, true))
  end)

  it("of a policy says in which process, when that is not the balancer", function()
    local e = kit.event("policy_tripped")
    assert.equal("⚠️ Policy route.lua failed too often and is set aside", header(policy.format(e)))
    e.fields = { { "file", "sync.lua" }, { "process", "worker 7 on h" } }
    assert.equal("⚠️ Policy sync.lua failed too often in worker 7 on h and is set aside there",
      header(policy.format(e)))
  end)

  it("of a worker or a monitor says once where it runs", function()
    for _, kind in ipairs { "worker_dead", "worker_back", "monitor_silent", "monitor_back" } do
      local shown = text_of(policy.format(kit.event(kind)))
      assert.truthy(shown:find("*Host*\ndb1", 1, true))
      assert.is_nil(shown:find("*worker*", 1, true) or shown:find("*monitor*", 1, true))
    end
  end)

  it("that ends something says neither an urgency nor what to do", function()
    local shown = text_of(policy.format(kit.event("server_up")))
    assert.is_nil(shown:find("Urgency", 1, true))
    assert.is_nil(shown:find("Look at", 1, true))
  end)

  it("of sizes shows GB when they are large", function()
    has(policy.format(kit.event("disk_above")), "*Free*\n860 MB")
    local e = kit.event("disk_above", { fields = { { "instance", "a" }, { "free_mb", "5120" } } })
    has(policy.format(e), "*Free*\n5.0 GB")
  end)

  it("that lacks a field that its title names is called as whoever raised it did", function()
    local e = kit.event("server_down", { fields = {}, title = "Something is down" })
    assert.equal("🚨 Something is down", header(policy.format(e)))
    e.title = ""
    assert.equal("🚨 server down", header(policy.format(e)))
  end)

  it("that nobody knows is shown as it came", function()
    local payload = policy.format(kit.event("brand_new", {
      title = "News", text = "More of it.", fields = { { "colour", "blue" }, { "size", 2.5 } },
    }))
    assert.equal("⚠️ News", header(payload))
    has(payload, "More of it.")
    has(payload, "*colour*\nblue")
    has(payload, "*size*\n2.5")
  end)
end)

describe("where it comes from:", function()
  it("the deployment, the time and, with PUBLIC_URL, links", function()
    local payload = linked.format(kit.event("server_down"))
    has(payload, "prod &lt;1&gt;")
    has(payload, "<https://chromux.example/dashboard|Dashboard>")
    has(payload, "<https://chromux.example/status|Status>")
    has(payload, "<!date^1700000000^{date_short_pretty} {time_secs}|2023-11-14 22:13:20 UTC>")
    assert.equal("[prod &lt;1&gt;] 🚨 Server a is down", payload.text:match("^[^—]+"):gsub(" $", ""))
    payload = policy.format(kit.event("server_down"))
    has(payload, "chromux")
    assert.is_nil(text_of(payload):find("Dashboard", 1, true))
  end)

  it("no URL can break out of its link", function()
    local evil = kit.load(PATH, { settings = { PUBLIC_URL = "https://x/|y>z & <w" } })
    has(evil.format(kit.event("test")), "<https://x/y&gt;z&amp;&lt;w/status|Status>")
  end)
end)

describe("text from elsewhere", function()
  local function shown(value)
    local payload = policy.format(kit.event("brand_new", { fields = { { "x", value } } }))
    return text_of(payload):match("%*x%*\n(.-)\n%*Urgency") or text_of(payload):match("%*x%*\n([^\n]*)")
  end

  it("cannot mention, link or break entities", function()
    assert.equal("&lt;!channel&gt; &amp;amp; &lt;http://x|y&gt;", shown("<!channel> &amp; <http://x|y>"))
  end)

  it("is UTF-8 without control characters", function()
    assert.equal("a?b??c??? d", shown("a\255b\192\128c\237\160\128\1d"))
    assert.equal("grün 🚨 €", shown("grün 🚨 €"))
    assert.equal("cut ?", shown("cut \226"))
    assert.equal("-", shown(""))
  end)

  it("is cut between characters, never inside an entity", function()
    for _, piece in ipairs({ "&", "€", "🚨", "a<", "\255" }) do
      for length = 495, 505 do
        local e = kit.event("brand_new", { title = piece:rep(300), text = piece:rep(5000), fields = {
          { piece:rep(200), piece:rep(length) },
        } })
        local payload = policy.format(e)
        assert.is_nil(text_of(payload):find("&[^algm]"))
        assert.is_nil(text_of(payload):find("&amp…", 1, true))
      end
    end
    assert.equal(500, #shown(("a"):rep(500)))
    assert.equal("aaa…", shown(("a"):rep(501)):sub(-6))
    assert.equal(499 + #"…", #shown(("a"):rep(501)))
  end)

  it("of any length and number is within the limits", function()
    local many = {}
    for i = 1, 100 do
      many[i] = { ("name & " .. i):rep(50), ("<value> " .. i):rep(500) }
    end
    local payload = policy.format(kit.event("brand_new", { title = ("<"):rep(9999), text = ("&"):rep(99999),
      fields = many }))
    assert.is_true(#payload.blocks <= 6)
    assert.is_true(#payload.text < 2000)
  end)
end)

describe("a group", function()
  it("is one message with a line for each, headed by the worst", function()
    local payload = linked.format(kit.event("group", {
      group = { kit.event("copy_lost"), kit.event("server_down"), kit.event("server_up") },
    }))
    assert.equal("🚨 Server a is down, and 2 more", header(payload))
    has(payload, "*⚠️ A copy on a is out of use* — Instance: a, Collection: documents, Cause: 500 three times in a row")
    has(payload, "Reads go to the other copies")
    has(payload, "*🚨 Server a is down* — ")
    has(payload, "*✅ Server a is up again* — ")
    assert.truthy(payload.text:find("[prod &lt;1&gt;] ⚠️ A copy on a is out of use; 🚨 Server a", 1, true))
  end)

  it("of many shows some and says how many there are more", function()
    local group = {}
    for i = 1, 100 do
      group[i] = kit.event("copy_lost", { fields = { { "instance", "n" .. i }, { "cause", ("<"):rep(5000) } } })
    end
    local payload = policy.format(kit.event("group", { group = group }))
    assert.equal("⚠️ A copy on n1 is out of use, and 99 more", header(payload))
    has(payload, "and 70 more")
    assert.equal(33, #payload.blocks)
  end)

  local in_vm = kit.native_kit() and it or pending
  in_vm("as large as one can be is made within a policy's budget", function()
    local group = {}
    for i = 1, 30 do
      local fields = { { "instance", ("a"):rep(63) }, { "collection", ("<"):rep(1000) }, { "cause", ("é"):rep(500) } }
      for k = 4, 10 do
        fields[k] = { "n" .. k, ("&"):rep(1000) }
      end
      group[i] = kit.event("copy_lost", { title = ("t"):rep(200), text = ("x"):rep(2000), fields = fields })
    end
    local native = kit.native(PATH)
    assert.equal(32, #native.format(kit.event("group", { group = group })).blocks)
    local long = kit.event("brand_new", { title = ("<"):rep(50000), text = ("ab "):rep(50000) })
    assert.equal(4, #native.format(long).blocks)
  end)
end)
