-- A page of metrics as Prometheus wants it (its text format, and what promtool finds fault with): run by
-- guide_sql_test.c with the page's path; exits 1 with what is wrong.
local path = ...
local faults, types, helped, last, seen = {}, {}, {}, nil, {}
local done = {} -- names whose samples are over

local function fault(...) faults[#faults + 1] = string.format(...) end

-- The family of a sample: of a histogram its name without _bucket, _sum and _count.
local function family(name)
  local base = name:gsub("_bucket$", ""):gsub("_sum$", ""):gsub("_count$", "")
  return types[name] and name or types[base] == "histogram" and base or name
end

local function comment(line)
  local what, name, rest = line:match("^# (%u+) (%S+) (.+)$")
  if not what then return fault("no comment that is known: %s", line) end
  if what == "HELP" then
    if helped[name] then fault("HELP of %s twice", name) end
    if not rest:find("%.$") then fault("HELP of %s is no sentence: %s", name, rest) end
    helped[name] = true
  elseif what == "TYPE" then
    if types[name] then fault("TYPE of %s twice", name) end
    if rest ~= "counter" and rest ~= "gauge" and rest ~= "histogram" then fault("TYPE of %s: %s", name, rest) end
    types[name] = rest
    if (rest == "counter") ~= (name:find("_total$") ~= nil) then fault("%s is a %s", name, rest) end
    -- Those of any process have names of Prometheus's own.
    if not (name:find("^chromux_[a-z0-9_]+$") or name:find("^process_[a-z0-9_]+$")) then fault("a name: %s", name) end
  end
end

local function labels_of(text, line)
  local at = 1
  while at <= #text do
    local value = text:match('^[a-z_]+="()', at)
    if not value then return fault("labels: %s", line) end
    while text:sub(value, value) ~= '"' do
      local c = text:sub(value, value)
      if c == "" or c == "\\" and not text:find('^[\\"n]', value + 1) then return fault("a label: %s", line) end
      value = value + (c == "\\" and 2 or 1)
    end
    at = value + 1
    if at <= #text and text:sub(at, at) ~= "," then return fault("labels: %s", line) end
    at = at + 1
  end
end

local function sample(line)
  local name, labels, value = line:match("^([%w_]+)(%b{}) (%S+)$")
  if not name then name, value = line:match("^([%w_]+) (%S+)$") end
  if not name then return fault("no sample: %s", line) end
  if labels then labels_of(labels:sub(2, -2), line) end
  if not tonumber(value) then fault("no number: %s", line) end
  local of, series = family(name), name .. (labels or "")
  if not types[of] or not helped[of] then fault("%s comes before its TYPE or HELP", name) end
  if seen[series] then fault("%s twice", series) end
  seen[series] = true
  if of ~= last and done[of] then fault("%s is torn apart", of) end
  if last and of ~= last then done[last] = true end
  last = of
end

local count = 0
for line in io.lines(path) do
  count = count + 1
  if line:sub(1, 1) == "#" then comment(line) else sample(line) end
end
for name in pairs(types) do
  if not done[name] and name ~= last then fault("%s has no sample", name) end
end
if count < 100 then fault("only %d lines", count) end
print(table.concat(faults, "\n"))
return #faults == 0 and 0 or 1
