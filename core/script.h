/* script.h: a Lua VM: create, guarded call, embedded modules, plain values across VMs. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include "buf.h"
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

/* A file of lua/ that the build put into the program. */
struct script_file {
    const char *name; /* "lb/status.lua" */
    const char *p, *end;
};
extern const struct script_file script_files[]; /* ends with a NULL name */
extern const unsigned script_file_count;
const struct script_file *script_file_find(const char *name);

/* A trusted VM: all standard libraries, JIT on, cjson and our lua/ modules through require().
 * memory_cap in bytes, 0: none. The allocator is malloc's. */
lua_State *script_new(size_t memory_cap) MUST_CHECK;
void script_free(lua_State *L);
/* Bytes the VM holds now. */
size_t script_memory(lua_State *L);

/* Calls the function under its nargs arguments. false: the stack holds nothing of the call and
 * *error has the message with file:line and, when trace is set, a traceback. */
bool script_call(lua_State *L, int nargs, int nresults, bool trace, struct buf *error) MUST_CHECK;

/* Copies the plain value at index `at` of one VM onto the top of another: nil, boolean, number,
 * string and tables of these (at most 16 deep, 10,000 values). false: *why is static text, nothing
 * pushed. */
#define SCRIPT_NO_MEMORY "out of memory" /* one of those texts */
bool script_copy(lua_State *from, int at, lua_State *to, const char **why) MUST_CHECK;

#endif
