-- damage.lua: what a disk may do to the files of a Chroma server that is down. Chroma keeps the vectors of a
-- collection in a folder of its own, named after a segment, once enough was written; the rest is in chroma.sqlite3.
--
--   segment   the folder is gone: Chroma starts without these vectors and says so only when asked for them; a query
--             finds the records that were written since, and answers 200
--   pickle    its index_metadata.pickle ends early: 500 to all that concerns the collection. A SIGKILL may do that too,
--             and does where the files are written often: that counts as damage when the server itself shows it.
local process = require("process")

local M = { kinds = { "segment", "segment", "pickle" } }

-- The collection's id on the server whose vectors are in this segment; nil: the table has no such row. A row of
-- `segments` is its columns' text one after another: id, type, scope, collection.
function M.collection_of(text, segment)
  local from, to = text:find(segment, 1, true)
  while from do
    local id = text:match("^urn:chroma:segment/vector/hnsw%-local%-persistedVECTOR(%x+%-%x+%-%x+%-%x+%-%x+)", to + 1)
    if id then return id end
    from, to = text:find(segment, to + 1, true)
  end
end

-- Breaks the files of one collection below `data`, the folder of a server that does not run; dice, 0 <= dice < 1,
-- chooses. spare: ids of collections that are not to be hit. The collection's id there; nil: there is none.
function M.inflict(data, kind, dice, spare)
  local f = io.open(data .. "/chroma.sqlite3", "rb")
  local text = f and f:read("*a") or ""
  if f then f:close() end
  local able = {}
  local files = process.output("cd " .. data .. " && ls -d */index_metadata.pickle 2>/dev/null")
  for segment in files:gmatch("([%x%-]+)/") do
    local id = M.collection_of(text, segment)
    if id and not spare[id] then able[#able + 1] = { segment = segment, id = id } end
  end
  table.sort(able, function(a, b) return a.segment < b.segment end)
  local one = able[1 + math.floor(dice * #able)]
  if not one then return nil end
  local folder = data .. "/" .. one.segment
  if kind == "segment" then
    os.execute("rm -rf " .. folder)
  else
    local pickle = assert(io.open(folder .. "/index_metadata.pickle", "rb"))
    local whole = pickle:read("*a")
    pickle:close()
    pickle = assert(io.open(folder .. "/index_metadata.pickle", "wb"))
    pickle:write(whole:sub(1, math.floor(#whole * 0.9 * (dice * 7919 % 1))))
    pickle:close()
  end
  return one.id
end

return M
