-- answers.lua: what a server's answer to a write means (PROTOCOL.md R6, R7).
--
--   meaning(answer, physical) -> "applied" | "refused" | "lost" | "later" | "unsure"
--       physical: the collection's id, which a 404 must name to say that it is lost
--   shape(answer) -> {error=, message=} | false
--   failure(answer) -> answer
--   under(answer, physical, logical) -> answer      as clients are to read it, who know the collection by another id
local json = json

local M = {}

local REFUSALS = { [400] = true, [409] = true, [413] = true, [415] = true, [422] = true, [501] = true }
-- Raised before anything is written to the log, whatever the status says.
local SURE_500 = { "UNIQUE constraint", "too many SQL variables" }

-- Chroma's own error, decoded; false: it is none.
function M.shape(answer)
  local t = json.decode(answer.body)
  return type(t) == "table" and type(t.error) == "string" and t
end

function M.meaning(answer, physical)
  local status = answer.status
  -- Chroma answers in JSON; anything else was somebody in its place.
  if status >= 200 and status < 300 then return answer.body:find("^%s*[{%[tn]") and "applied" or "unsure" end
  if status == 429 or status == 503 then return "later" end
  local shape = M.shape(answer)
  if status == 404 and shape and physical and tostring(shape.message):find(physical, 1, true) then return "lost" end
  if REFUSALS[status] and (shape or status == 413 or status == 415) then return "refused" end
  if status == 500 and shape then
    for _, text in ipairs(SURE_500) do
      if tostring(shape.message):find(text, 1, true) then return "refused" end
    end
  end
  return "unsure"
end

function M.under(answer, physical, logical)
  if physical == logical or not answer.body:find(physical, 1, true) then return answer end
  local body = answer.body:gsub(physical:gsub("%-", "%%-"), logical)
  return { status = answer.status, type = answer.type, body = body }
end

-- What the client is told of an entry that no copy took.
function M.failure(answer)
  if answer.status >= 400 then return answer end
  return { status = 502, type = "application/json",
    body = '{"error":"ChromaError","message":"the instances answer with what is no answer of Chroma"}' }
end

return M
