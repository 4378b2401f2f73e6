/* pg_lua.h: values between Lua and PostgreSQL: parameters and statements out of a Lua stack, rows
 * and outcomes onto it. No state. */
#ifndef PG_LUA_H
#define PG_LUA_H

#include "pg_pipe.h"
#include <lua.h>

/* Parameters are nil, boolean, number, string, null (a NULL light userdata, as cjson's) and what
 * pg_lua_bytes made. Errors of Lua when they are something else. A string that is no text for
 * PostgreSQL (a message that was cut in the middle of a character) is replaced, where it is, by one
 * with U+FFFD for each wrong byte. What these two return is a userdata that they push; it points to
 * strings of the values read, which must stay where they are. */
const struct pg_value *pg_lua_params(lua_State *L, int first, unsigned n);
/* Of a list of {sql, param…, n=count}; n may be left out when no parameter is nil. */
const struct pg_statement *pg_lua_statements(lua_State *L, int list, unsigned *n);

/* bytes(string) -> a parameter that is a bytea */
int pg_lua_bytes(lua_State *L);

/* Of a light userdata, const struct pg_rows *: list of rows with .affected; or nil, message,
 * sqlstate. */
int pg_lua_push_rows(lua_State *L);
/* The same of a const struct pg_outcome *: list of lists of rows; or nil, message, sqlstate,
 * {unknown=, index=}. */
int pg_lua_push_outcome(lua_State *L);

#endif
