-- The dialect is LuaJIT's; a policy has `lb` and no I/O.
std = "luajit"
max_line_length = 120
exclude_files = { "build*", "var", "node_modules" }

files["policies"] = {
  std = {
    read_globals = {
      "lb", "assert", "bit", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "print",
      "rawequal", "rawget", "rawset", "select", "setmetatable", "tonumber", "tostring", "type",
      "unpack", "xpcall", "_VERSION",
      coroutine = { fields = { "create", "resume", "running", "status", "wrap", "yield" } },
      math = {
        fields = {
          "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor",
          "fmod", "frexp", "huge", "ldexp", "log", "log10", "max", "min", "modf", "pi", "pow",
          "rad", "sin", "sinh", "sqrt", "tan", "tanh",
        },
      },
      os = { fields = { "clock", "date", "time" } },
      string = {
        fields = {
          "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep",
          "reverse", "sub", "upper",
        },
      },
      table = { fields = { "concat", "insert", "maxn", "remove", "sort" } },
    },
  },
}

-- What `chromux script` gives to a program (core/api.h).
files["scripts"] = {
  read_globals = { "fetch", "pg", "sleep", "now", "spawn", "json", "log", "env" },
}
-- The same in our own modules; runtime.lua makes them.
files["lua/lb"] = {
  read_globals = { "fetch", "pg", "sleep", "now", "spawn", "json", "log", "env" },
}
files["tests/chaos"] = files["scripts"]
files["tests/integration"] = files["scripts"]
files["tests/bench/sync.lua"] = files["scripts"]
files["tests/integration/exact.lua"] = files["scripts"]
files["tests/spec"] = { std = "luajit+busted" }
files["policies/*_spec.lua"] = { std = "luajit+busted" }
