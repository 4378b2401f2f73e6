-- slack.lua: how a message reads. See README.md for the kinds of events and their fields.
--
-- Slack wants blocks and, for notifications, the same as plain text. Its limits are LIMITS; text that
-- comes from elsewhere is escaped and cut to them.
local M = {}

local LIMITS = { header = 150, section = 3000, field = 2000, fields = 10, blocks = 50, text = 40000 }

-- Ours, for messages that people read: far below Slack's.
local VALUE_MOST, FIELDS_MOST, LINE_MOST, GROUP_MOST = 500, 20, 600, 30

local NAME = lb.settings.DEPLOYMENT_NAME or ""
local URL = lb.settings.PUBLIC_URL or ""

local EMOJI = { high = "🚨", medium = "⚠️", low = "ℹ️" }
local OVER = "✅"
local RANK = { low = 1, medium = 2, high = 3 }

-- ---- words: title, and what to do; {name} is a field of the event ------------------------------

local WORDS = {
  server_down = { "Server {instance} is down",
    "The other servers carry on. Look at its log and its host; once it answers, it catches up by itself." },
  server_up = { "Server {instance} is up again" },
  failover = { "Writes go to {instance} instead of {from}" },
  failback = { "Writes go to {instance} again" },
  copy_lost = { "A copy on {instance} is broken",
    "Reads go to the other copies; it is made anew from one of them." },
  server_lost_data = { "{instance} came back without what it had",
    "It is not read from until its collections are made anew. Where is its data folder?" },
  copy_rebuilt = { "The copies on {instance} are whole again" },
  no_source = { "Collection {collection} has no good copy left",
    "Nothing is overwritten. Bring a server back that has it, or restore a backup." },
  repaired = { "Collection {collection} differed on {instance} and was repaired" },
  lag_above = { "{instance} lags behind",
    "Reads that want the newest data go elsewhere. If it does not catch up, it is overloaded." },
  lag_below = { "{instance} has caught up" },
  journal_unavailable = { "The journal is unavailable: writes are refused",
    "Reads go on. Bring PostgreSQL back, or mend the way to it." },
  journal_back = { "The journal is back: writes are taken again" },
  journal_filling = { "The journal is filling up",
    "A server that stays away keeps it from being trimmed. Bring it back or retire it." },
  journal_full = { "The journal is full: writes are refused",
    "Bring back the server that lacks the oldest writes, or retire it." },
  journal_room = { "The journal has room again" },
  postgres_restored = { "PostgreSQL was restored from a backup: writes are refused",
    "Say which side is right: `chromux journal --help`." },
  restore_accepted = { "The restored PostgreSQL is accepted: writes are taken again" },
  entry_skipped = { "An operator skipped a write of the journal" },
  not_adopted = { "{instance} holds what the others do not have",
    "It is not taken over. Look at it, then empty the server or carry its data over by hand." },
  instance_retired = { "{instance} is retired" },
  disk_above = { "The disk of {instance} is filling up",
    "Free some room or get a larger disk: Chroma stops when it is full." },
  disk_below = { "The disk of {instance} has room again" },
  recommendation_opened = { "ChromaDB Upgrade Needed" },
  recommendation_raised = { "ChromaDB Upgrade Needed: more urgent now" },
  recommendation_closed = { "ChromaDB Upgrade No Longer Needed" },
  policy_tripped = { "Policy {file} failed too often and is set aside",
    "What is built in decides instead. Mend the file and reload." },
  policy_back = { "Policy {file} decides again" },
  worker_back = { "Sync worker {worker} is back" },
  worker_dead = { "Sync worker {worker} has died", "Another one takes over its task." },
  monitor_silent = { "Monitor {monitor} is silent", "Nothing watches memory and disks there. Is it running?" },
  monitor_back = { "Monitor {monitor} is back" },
  messages_failing = { "Messages to {sink} are failing", "They are kept and sent later." },
  messages_delivered = { "Messages to {sink} go out again" },
  test = { "Test message" },
}

-- Fields in the order in which they are shown, what they are called, and how numbers are written;
-- others follow under their own names.
local LABELS = {
  { "instance", "Instance" },
  { "reason", "Reason" },
  { "type", "Type" },
  { "current_usage", "Current usage", "%.1f %%" },
  { "recommended_tier", "Recommended plan" },
  { "estimated_monthly_cost", "Monthly cost", "$%g" },
  { "urgency", "Urgency" },
  { "collection", "Collection" },
  { "cause", "Cause" },
  { "percent", "Used", "%.1f %%" },
  { "free_mb", "Free", "%d MB" },
  { "entries", "Entries behind", "%d" },
  { "seconds", "For", "duration" },
  { "source", "Source" },
  { "records", "Records", "%d" },
  { "differences", "Differences", "%d" },
  { "repaired", "Repaired", "%d" },
}
local PLACE = {}
for i, label in ipairs(LABELS) do
  PLACE[label[1]] = i
end

-- ---- text -------------------------------------------------------------------------------------

local ESCAPED = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }

-- How many bytes the character at i has; nil: it is none (UTF-8, RFC 3629).
local function width(text, i)
  local b = text:byte(i)
  local n = b < 0x80 and 1 or b < 0xc2 and 0 or b < 0xe0 and 2 or b < 0xf0 and 3 or b < 0xf5 and 4 or 0
  for k = 1, n - 1 do
    local c = text:byte(i + k)
    local least = k == 1 and (b == 0xe0 and 0xa0 or b == 0xf0 and 0x90) or 0x80
    local most = k == 1 and (b == 0xed and 0x9f or b == 0xf4 and 0x8f) or 0xbf
    if not c or c < least or c > most then
      return nil
    end
  end
  return n > 0 and n or nil
end

-- Any value as text of at most so many characters: escaped, without control characters.
local function fit(value, most)
  local text, out, used, i = tostring(value), {}, 0, 1
  while i <= #text do
    local n = width(text, i)
    local c = n and text:sub(i, i + n - 1) or "?"
    if n == 1 and c:byte() < 32 and c ~= "\n" or c == "\127" then
      c = " "
    end
    c = ESCAPED[c] or c
    used = used + (c:byte() < 0x80 and #c or 1)
    if used >= most and (used > most or i + (n or 1) <= #text) then
      out[#out + 1] = "…"
      break
    end
    out[#out + 1] = c
    i = i + (n or 1)
  end
  return #out > 0 and table.concat(out) or "-"
end

local function duration(seconds)
  if seconds < 120 then
    return ("%d s"):format(seconds)
  elseif seconds < 7200 then
    return ("%d min"):format(seconds / 60)
  elseif seconds < 172800 then
    return ("%.1f h"):format(seconds / 3600)
  end
  return ("%.1f days"):format(seconds / 86400)
end

-- Slack shows it in the reader's own time zone; old clients show the rest.
local function time(at)
  return ("<!date^%d^{date_short_pretty} {time_secs}|%s>"):format(at, os.date("!%Y-%m-%d %H:%M:%S UTC", at))
end

local function link(path, label)
  return ("<%s%s|%s>"):format(fit(URL, 1000):gsub("[|%s]", ""):gsub("/$", ""), path, label)
end

-- ---- the parts of an event --------------------------------------------------------------------

local function values_of(event)
  local values = {}
  for _, field in ipairs(event.fields) do
    values[field[1]] = field[2]
  end
  return values
end

local function title_of(event)
  local words, values, whole = WORDS[event.kind], values_of(event), true
  local title = words and words[1]:gsub("{(%w+)}", function(name)
    whole = whole and values[name] ~= nil
    return tostring(values[name])
  end)
  if not (title and whole) then
    title = event.title ~= "" and event.title or event.kind:gsub("_", " ")
  end
  local emoji = event.ends and OVER or EMOJI[event.urgency]
  return emoji .. " " .. fit(title, LIMITS.header - 10)
end

local function shown(name, value)
  local format = PLACE[name] and LABELS[PLACE[name]][3]
  local number = format and tonumber(value) or type(value) == "number" and value
  if not number then
    return tostring(value)
  elseif format == "duration" then
    return duration(number)
  end
  return (format or "%.14g"):format(number)
end

-- {label, value} of all that is told, in order.
local function fields_of(event)
  local list = {}
  for i, field in ipairs(event.fields) do
    local name = tostring(field[1])
    list[i] = {
      place = PLACE[name] or #LABELS + i,
      label = PLACE[name] and LABELS[PLACE[name]][2] or name,
      value = shown(name, field[2]),
    }
  end
  local function add(name, label, value)
    list[#list + 1] = { place = PLACE[name] or math.huge, label = label, value = value }
  end
  add("urgency", "Urgency", event.urgency)
  local lasted = event.since > 0 and (event.ends and event.at or event.now) - event.since or 0
  if lasted >= (event.ends and 1 or 60) then
    add("since", event.ends and "Lasted" or "Lasts for", duration(lasted))
  end
  if event.repeats > 0 then
    add("repeats", "Not told before", event.repeats .. " times")
  end
  if event.openings > 1 then
    add("openings", "Within the last hour", event.openings .. " times")
  end
  table.sort(list, function(a, b)
    return a.place < b.place
  end)
  return list
end

-- ---- blocks -----------------------------------------------------------------------------------

local function section(text)
  return { type = "section", text = { type = "mrkdwn", text = text } }
end

local function add_fields(blocks, list)
  for from = 1, math.min(#list, FIELDS_MOST), LIMITS.fields do
    local fields = {}
    for i = from, math.min(#list, FIELDS_MOST, from + LIMITS.fields - 1) do
      local text = ("*%s*\n%s"):format(fit(list[i].label, 60), fit(list[i].value, VALUE_MOST))
      fields[#fields + 1] = { type = "mrkdwn", text = text }
    end
    blocks[#blocks + 1] = { type = "section", fields = fields }
  end
end

local function footer(event)
  local parts = { NAME ~= "" and fit(NAME, 200) or "chromux", time(event.at) }
  if URL ~= "" then
    parts[#parts + 1] = link("/dashboard", "Dashboard")
    parts[#parts + 1] = link("/status", "Status")
  end
  return { type = "context", elements = { { type = "mrkdwn", text = table.concat(parts, " · ") } } }
end

local function plain(title)
  return NAME ~= "" and ("[%s] %s"):format(fit(NAME, 200), title) or title
end

-- One event in one line.
local function line_of(event)
  local parts = {}
  for _, field in ipairs(fields_of(event)) do
    if field.label ~= "Urgency" and #parts < 6 then
      parts[#parts + 1] = field.label .. ": " .. field.value
    end
  end
  return title_of(event), #parts > 0 and " — " .. fit(table.concat(parts, ", "), LINE_MOST - 200) or ""
end

local function format_one(event)
  local title, list = title_of(event), fields_of(event)
  local blocks = { { type = "header", text = { type = "plain_text", text = title, emoji = true } } }
  local todo = WORDS[event.kind] and WORDS[event.kind][2]
  local said = {}
  if event.text ~= "" and event.text ~= values_of(event).reason then
    said[1] = fit(event.text, LIMITS.section - 500)
  end
  if todo then
    said[#said + 1] = todo
  end
  if #said > 0 then
    blocks[#blocks + 1] = section(table.concat(said, "\n"))
  end
  add_fields(blocks, list)
  blocks[#blocks + 1] = footer(event)
  local _, rest = line_of(event)
  return { text = plain(title .. rest), blocks = blocks }
end

local function format_group(event)
  local worst = "low"
  for _, one in ipairs(event.group) do
    worst = RANK[one.urgency] > RANK[worst] and one.urgency or worst
  end
  local title = ("%s %d messages"):format(EMOJI[worst], #event.group)
  local blocks = { { type = "header", text = { type = "plain_text", text = title, emoji = true } } }
  local lines = {}
  for i = 1, math.min(#event.group, GROUP_MOST) do
    local head, rest = line_of(event.group[i])
    blocks[#blocks + 1] = section(("*%s*%s"):format(head, rest))
    lines[i] = head
  end
  if #event.group > GROUP_MOST then
    blocks[#blocks + 1] = section(("and %d more"):format(#event.group - GROUP_MOST))
  end
  blocks[#blocks + 1] = footer(event)
  return { text = plain(title .. ": " .. table.concat(lines, "; ")), blocks = blocks }
end

function M.format(event)
  return #event.group > 0 and format_group(event) or format_one(event)
end

return M
