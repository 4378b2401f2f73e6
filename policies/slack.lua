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

-- ---- words ------------------------------------------------------------------------------------
--
-- Of each kind the title, and what to do. {name} is a field of the event. Of several titles the first
-- counts whose fields are there; without one the title is that of whoever raised the event. `news`: it
-- does not last.

local function what_carries_on(values)
  local up = tonumber((tostring(values.servers_up or ""):match("^(%d+) of")))
  local meanwhile = up == 0 and "No server is up: requests are refused until one is. "
    or up and "The other servers carry on. " or ""
  return meanwhile .. "Look at its log and its host; once it answers, it catches up by itself."
end

local function what_decides(values) -- nothing else advises
  return (values.file and "What is built in decides instead. " or "") .. "Mend the file and reload (send HUP)."
end

local WORDS = {
  server_down = { "Server {instance} is down", what_carries_on },
  server_up = { "Server {instance} is up again" },
  failover = { "Writes go to {instance} instead of {from}",
    "Bring {from} back; it catches up by itself.", news = true },
  failback = { "Writes go to {instance} again", news = true },
  copy_lost = { "A copy on {instance} is out of use",
    "Reads go to the other copies, and it is made anew from one of them. If that takes long: `chromux sync status`." },
  server_lost_data = { "{instance} came back without what it had",
    "Is its data folder where it was? A disk that is not mounted and a container without a volume look like this." },
  copy_rebuilt = { "The copies on {instance} are whole again" },
  rebuild_slow = { "Making collection {collection} anew on {instance} takes long",
    "It goes on by itself. It ends sooner when clients write less to this collection for a while." },
  rebuild_failed = { "Collection {collection} cannot be made anew on {instance}",
    "Mend what the text says, then `chromux sync rebuild`. The other copies are not touched." },
  rebuild_done = { "Collection {collection} is made anew on {instance}" },
  no_source = { "Collection {collection} has no good copy left",
    "Bring a server back that has it, or restore a backup." },
  repaired = { "Collection {collection} differed on {instance} and was repaired",
    "Nothing is to be done. If it comes again, somebody writes to {instance} past chromux, or its disk fails.",
    news = true },
  lag_above = { "{instance} lags behind",
    "Reads that want the newest data go elsewhere. If it does not catch up, look at its CPU and its disk." },
  lag_below = { "{instance} has caught up" },
  journal_unavailable = { "The journal is unavailable: writes are refused",
    "Bring PostgreSQL back, or mend the way to it." },
  journal_back = { "The journal is back: writes are taken again" },
  journal_filling = { "The journal is filling up",
    "A server that stays away keeps it from being trimmed. Bring it back, or `chromux journal retire` it." },
  journal_full = { "The journal is full: writes are refused",
    "Bring back the server that lacks the oldest writes, or `chromux journal retire` it." },
  journal_room = { "The journal has room again" },
  postgres_restored = { "PostgreSQL was restored from a backup: writes are refused",
    "Say which side is right: `chromux journal accept-restore` (`chromux journal help` has the choices)." },
  restore_accepted = { "The restored PostgreSQL is accepted: writes are taken again" },
  entry_skipped = { "An operator skipped a write of the journal", news = true },
  not_adopted = { "{instance} holds what the others do not have",
    "It is left as it is. Carry over by hand what you need of it, and delete the rest there.", news = true },
  instance_retired = { "{instance} is retired",
    "Take it out of the configuration, and do not use its name again.", news = true },
  disk_above = { "The disk of {instance} is nearly full",
    "Free some room or get a larger disk: Chroma stops when it is full." },
  disk_below = { "The disk of {instance} has room again" },
  recommendation_opened = { "ChromaDB Upgrade Needed: {type} of {instance}",
    "Move it to the plan below, or take work off it. `chromux advise` shows the figures." },
  recommendation_raised = { "ChromaDB Upgrade Needed, more urgent now: {type} of {instance}",
    "Move it to the plan below, or take work off it. `chromux advise` shows the figures." },
  recommendation_closed = { "ChromaDB Upgrade No Longer Needed: {type} of {instance}" },
  policy_tripped = { { "Policy {file} failed too often in {process} and is set aside there",
    "Policy {file} failed too often and is set aside" },
    what_decides },
  policy_back = { { "Policy {file} decides again in {process}", "Policy {file} decides again" } },
  worker_dead = { "A sync worker on {host} is gone",
    "Its supervisor starts another. If this goes on, the log says why." },
  worker_back = { "A sync worker on {host} is at work" },
  monitor_silent = { "The monitor on {host} is silent",
    "Nothing watches memory and disks there. Does `chromux run --role monitor` run?" },
  monitor_back = { "The monitor on {host} is back" },
  messages_failing = { "Messages to {sink} are failing", "Look at the webhook's address and at what it answers." },
  messages_delivered = { "Messages to {sink} go out again" },
  test = { "Test message", news = true },
}

-- Fields in the order in which they are shown, what they are called, and how numbers are written;
-- others follow under their own names.
local LABELS = {
  { "instance", "Instance" },
  { "host", "Host" },
  { "process", "Process" },
  { "reason", "Reason" },
  { "type", "Type" },
  { "current_usage", "Current usage", "%.1f %%" },
  { "recommended_tier", "Recommended plan" },
  { "estimated_monthly_cost", "Monthly cost", "price" },
  { "urgency", "Urgency" },
  { "from", "Instead of" },
  { "collection", "Collection" },
  { "cause", "Cause" },
  { "servers_up", "Servers up" },
  { "percent", "Used", "%.1f %%" },
  { "free_mb", "Free", "size" },
  { "entries", "Writes behind", "%d" },
  { "seconds", "For", "duration" },
  { "source", "Source" },
  { "records", "Records", "%d" },
  { "differences", "Differences", "%d" },
  { "repaired", "Repaired", "%d" },
  { "file", "File" },
  { "task", "Task" },
  { "sink", "Webhook" },
  { "waiting", "Messages waiting", "%d" },
}
local OLDER = { worker = true, monitor = true } -- beside host they say the same again
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

-- Any value as text of at most so many characters: escaped, without control characters. Plain ASCII is
-- taken in runs, since each character by itself would cost a long message its budget.
local function fit(value, most)
  local text, out, used, i = tostring(value):sub(1, 4 * most + 4), {}, 0, 1 -- as much as that can take, and more
  while i <= #text do
    local c = text:match("^[^%c&<>\128-\255]+", i)
    local bytes, length = c and #c, c and #c
    if not c then
      bytes = width(text, i) or 1
      c = width(text, i) and text:sub(i, i + bytes - 1) or "?"
      if c ~= "\n" and c:find("^%c") then
        c = " "
      end
      c = ESCAPED[c] or c
      length = c:byte() < 0x80 and #c or 1
    end
    used, i = used + length, i + bytes
    if used > most or used == most and i <= #text then
      out[#out + 1] = length == bytes and bytes > 1 and c:sub(1, most - used + length - 1) or nil
      out[#out + 1] = "…"
      break
    end
    out[#out + 1] = c
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

local function times(n)
  return n == 1 and "once" or n .. " times"
end

local function size(mb)
  return mb < 1024 and ("%.4g MB"):format(mb) or ("%.1f GB"):format(mb / 1024)
end

local function utc(at)
  return os.date("!%Y-%m-%d %H:%M:%S UTC", at)
end

-- Slack shows it in the reader's own time zone; old clients show the rest.
local function time(at)
  return ("<!date^%d^{date_short_pretty} {time_secs}|%s>"):format(at, utc(at))
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

-- The text with the event's fields in it; nil: it lacks one.
local function filled(text, values)
  local whole = true
  text = text:gsub("{([%w_]+)}", function(name)
    whole = whole and values[name] ~= nil
    return tostring(values[name])
  end)
  return whole and text or nil
end

-- With its emoji, of at most so many characters.
local function title_of(event, most)
  local words, values, title = WORDS[event.kind], values_of(event), nil
  local titles = words and (type(words[1]) == "table" and words[1] or { words[1] }) or {}
  for _, text in ipairs(titles) do
    title = title or filled(text, values)
  end
  if not title then
    title = event.title ~= "" and event.title or event.kind:gsub("_", " ")
  end
  local emoji = event.ends and OVER or EMOJI[event.urgency]
  return emoji .. " " .. fit(title, most or LIMITS.header - 10)
end

-- What happened in more words, and what to do, within so many characters; nil: nothing.
local function said_of(event, most)
  local values, parts = values_of(event), {}
  if event.text ~= "" and event.text ~= values.reason then
    parts[1] = fit(event.text, most)
  end
  local todo = not event.ends and WORDS[event.kind] and WORDS[event.kind][2]
  if type(todo) == "function" then
    todo = todo(values)
  end
  todo = todo and filled(todo, values)
  parts[#parts + 1] = todo and fit(todo, most) or nil
  return #parts > 0 and table.concat(parts, "\n") or nil
end

local function shown(name, value)
  local format = PLACE[name] and LABELS[PLACE[name]][3]
  local number = format and tonumber(value) or type(value) == "number" and value
  if not number then
    return tostring(value)
  elseif format == "duration" then
    return duration(number)
  elseif format == "size" then
    return size(number)
  elseif format == "price" then
    return number > 0 and ("$%g"):format(number) or "not known"
  end
  return (format or "%.14g"):format(number)
end

-- {label=, value=, marked= the same as Slack's markup} of all that is told, in order.
local function fields_of(event)
  local list, by_host = {}, values_of(event).host
  for i, field in ipairs(event.fields) do
    local name = tostring(field[1])
    if not (by_host and OLDER[name]) then
      list[#list + 1] = {
        place = PLACE[name] or #LABELS + i,
        label = PLACE[name] and LABELS[PLACE[name]][2] or name,
        value = shown(name, field[2]),
      }
    end
  end
  local function add(name, label, value, marked)
    list[#list + 1] = { place = PLACE[name] or math.huge, label = label, value = value, marked = marked }
  end
  if not event.ends then
    add("urgency", "Urgency", event.urgency)
  end
  local lasted = event.since > 0 and (event.ends and event.at or event.now) - event.since or 0
  local lasts = event.since > 0 and not (WORDS[event.kind] or {}).news
  if event.ends and lasted >= 1 then
    add("since", "Lasted", duration(lasted))
  elseif lasts and not event.ends then
    local ago = lasted >= 60 and (" (%s)"):format(duration(lasted)) or ""
    add("since", "Since", utc(event.since) .. ago, time(event.since) .. ago)
  end
  if event.repeats > 0 then
    add("repeats", "Not told before", times(event.repeats))
  end
  if event.openings > 1 then
    add("openings", "Began within the last hour", event.openings .. " times")
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
      local one = list[i]
      local text = ("*%s*\n%s"):format(fit(one.label, 60), one.marked or fit(one.value, VALUE_MOST))
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
  local said = said_of(event, 1000)
  if said then
    blocks[#blocks + 1] = section(said)
  end
  add_fields(blocks, list)
  blocks[#blocks + 1] = footer(event)
  local _, rest = line_of(event)
  return { text = plain(title .. rest), blocks = blocks }
end

local function format_group(event)
  local worst = event.group[1]
  for _, one in ipairs(event.group) do
    worst = RANK[one.urgency] > RANK[worst.urgency] and one or worst
  end
  local title = ("%s, and %d more"):format(title_of(worst, LIMITS.header - 30), #event.group - 1)
  local blocks = { { type = "header", text = { type = "plain_text", text = title, emoji = true } } }
  local lines = {}
  for i = 1, math.min(#event.group, GROUP_MOST) do
    local head, rest = line_of(event.group[i])
    local said = said_of(event.group[i], 300)
    blocks[#blocks + 1] = section(("*%s*%s%s"):format(head, rest, said and "\n" .. said or ""))
    lines[i] = head
  end
  if #event.group > GROUP_MOST then
    blocks[#blocks + 1] = section(("and %d more"):format(#event.group - GROUP_MOST))
  end
  blocks[#blocks + 1] = footer(event)
  return { text = plain(table.concat(lines, "; ")), blocks = blocks }
end

function M.format(event)
  return #event.group > 0 and format_group(event) or format_one(event)
end

return M
