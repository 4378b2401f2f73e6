std = "luajit"
max_line_length = 120
files["policies"] = {read_globals = {"lb"}}
files["scripts"] = {read_globals = {"fetch", "pg", "sleep", "now", "spawn", "json", "log", "env"}}
files["tests/spec"] = {std = "+busted", globals = {"lb"}}
