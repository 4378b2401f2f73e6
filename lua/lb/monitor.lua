-- monitor.lua: what the monitor does. Nothing yet: the engine of core/engine.h that does nothing.
local M = {}

function M.start() return true end

function M.reload() return true end

function M.stop() return true end

function M.status() return {} end

function M.metrics() return {} end

return M
