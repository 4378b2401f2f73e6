-- words.lua: names of our own, which names can be kept, and answers of our own to requests of the catalogue, in
-- Chroma's words (1.0.20).
local slice = require("chromux.slice")

local M = {}

function M.says(status, name, message)
  return { status = status, type = "application/json", body = string.format('{"error":"%s","message":%s}', name,
    slice.quote(message)) }
end

M.EMPTY = { status = 200, type = "application/json", body = "{}" }

function M.no_collection_of_id(id)
  return M.says(404, "NotFoundError", "Collection [" .. id .. "] does not exists.")
end

-- In what is said of a failure: there is no use in trying again.
M.HOPELESS = "whatever is tried"

-- Names of collections that are about to end (operations.lua), that are to take the place of others (rebuild.lua), or
-- whose place is to be taken (member.lua). Clients get none of them.
local OWN = { ["chromux-tomb-"] = true, ["chromux-temp-"] = true, ["chromux-old-"] = true }

function M.own(name) return OWN[name:match("^chromux%-%l+%-") or ""] == true end

function M.is_id(text) return #text == 36 and text:find("^%x+%-%x+%-%x+%-%x+%-%x+$") ~= nil end

function M.no_id() return M.says(400, "InvalidArgumentError", "Collection ID is not a valid UUIDv4") end

function M.no_collection_of_name(name)
  return M.says(404, "NotFoundError", "Collection [" .. name .. "] does not exists")
end

function M.taken(what, name) return M.says(409, "ChromaError", what .. " [" .. name .. "] already exists") end

-- PostgreSQL takes UTF-8 without NUL, and what stands together in an index is bounded.
local NAME_MOST = 800 -- bytes

M.KEPT = "the journal keeps names of at most " .. NAME_MOST .. " bytes of UTF-8, without NUL"

function M.can_be_kept(name)
  return #name <= NAME_MOST and not name:find("%z") and slice.string(slice.quote(name)) == name
end

return M
