-- journal.lua: the journal's engine (a stand-in until it is there): nothing can be kept.
local answer = require("chromux.answer")
local copies = require("chromux.copies")

local M = {}

function M.start() copies.on(true) end
function M.reload() end
function M.submit(request) answer.refuse(request.ticket, "journal_away", "the journal is not there yet", 1) end
function M.gone() end
function M.lost() end
function M.status() return { replication = "degraded", reason = "the journal is not there yet", journal = {} } end
function M.metrics() return {} end
function M.stop() return true end

return M
