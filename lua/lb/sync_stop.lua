-- sync_stop.lua: how a step of a job of sync ends that does not come to its end: an error({how=, why=}).
--
--   later    again from its state, soon, but not for ever      waits   when its instances can be used
--   silent   as later, or with another source, when there is one
--   over     from its beginning                                broken  the copy is to be made anew
--   failed   for good                                          moot    there is nothing to do
--   left     somebody else has it, or changed it
local Stop = {}

-- What logs say of it.
Stop.WORDS = { later = "goes on later", silent = "goes on later", waits = "waits", over = "begins again",
  broken = "cannot be mended", failed = "failed", moot = "nothing is to be done", left = "is not ours any more" }

function Stop.stop(how, why) error({ how = how, why = why }, 0) end

-- What was caught; any other error: from its beginning.
function Stop.of(err)
  if type(err) == "table" and err.how then return err end
  return { how = "over", why = tostring(err) }
end

return Stop
