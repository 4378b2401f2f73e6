-- command.lua: what our command-line tools share: options, PostgreSQL, exit codes.
--
--   local command = Command.new("journal", HELP)
--   command.fail(code, fmt, ...)        ends the tool: one line to stderr
--   command.query(sql, ...)             rows, or the tool ends with AWAY
--   command.parse(args, from, allowed)  -> {words}, {option=value}
--   return command.main(args, COMMANDS) -> exit code; a command is a function of args, args[1] is its name
local Command = { FINE = 0, REFUSED = 1, USAGE = 2, AWAY = 3, NOBODY = 4 }

function Command.out(...) io.stdout:write(string.format(...), "\n") end

-- name: of the tool, as in `chromux name`. help: what `chromux name help` says.
function Command.new(name, help)
  local c = { out = Command.out }

  function c.fail(code, ...)
    io.stdout:flush()
    io.stderr:write("chromux ", name, ": ", string.format(...), "\n")
    error({ code = code }, 0)
  end

  function c.query(sql, ...)
    local rows, why, state = pg.query({ sql, timeout = 15 }, ...)
    if rows then return rows end
    if state == "42P01" or state == "42703" then
      c.fail(Command.AWAY, "this database has no journal of this version: has chromux run with this DATABASE_URL? (%s)",
        why)
    end
    c.fail(Command.AWAY, "%s",
      why == "no DATABASE_URL" and "DATABASE_URL is not set" or "PostgreSQL: " .. tostring(why))
  end

  -- allowed: {[name]=true} of options that a value follows, =false of those that take none.
  function c.parse(args, from, allowed)
    local words, options = {}, {}
    local i = from
    while args[i] do
      local option, value = args[i]:match("^%-%-([a-z%-]+)=(.*)$")
      option = option or args[i]:match("^%-%-([a-z%-]+)$")
      if not option then
        words[#words + 1] = args[i]
      elseif allowed[option] == nil then
        c.fail(Command.USAGE, "unknown option --%s; see chromux %s help", option, name)
      elseif allowed[option] == false then
        if value then c.fail(Command.USAGE, "--%s takes no value", option) end
        options[option] = true
      else
        if not value then
          i = i + 1
          value = args[i]
        end
        if not value or value == "" then c.fail(Command.USAGE, "a value must follow --%s", option) end
        options[option] = value
      end
      i = i + 1
    end
    return words, options
  end

  -- The only word, or the tool ends. what: as help calls it.
  function c.one(words, what)
    if #words ~= 1 then c.fail(Command.USAGE, "expected %s; see chromux %s help", what, name) end
    return words[1]
  end

  function c.none(words)
    if #words > 0 then c.fail(Command.USAGE, "what is %s? see chromux %s help", words[1], name) end
  end

  -- Options who and why are there.
  function c.signed(options)
    for _, option in ipairs { "who", "why" } do
      if not options[option] then c.fail(Command.USAGE, "--%s is missing: it is recorded", option) end
      if #options[option] > 500 then c.fail(Command.USAGE, "--%s is longer than 500 bytes", option) end
    end
  end

  function c.main(args, commands)
    if args[1] == "help" or args[1] == "--help" or args[1] == "-h" then
      io.stdout:write(help)
      return Command.FINE
    end
    local run = commands[args[1] or ""]
    if not run then
      io.stderr:write("chromux ", name, ": ", args[1] and "unknown command " .. args[1] or "a command must follow",
        "; see chromux ", name, " help\n")
      return Command.USAGE
    end
    local ok, code = pcall(run, args)
    if ok then return code end
    if type(code) == "table" then return code.code end
    error(code, 0)
  end

  return c
end

return Command
