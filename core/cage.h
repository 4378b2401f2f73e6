/* cage.h: what code in a sandbox may use: an environment without I/O, and read-only views. */
#ifndef CAGE_H
#define CAGE_H

#include "sandbox.h"

/* For sandbox_new(): the libraries, of which environments are copies. */
int cage_open(lua_State *L);

/* Compiles a file (text, at most 1 MiB) and pushes the chunk, with an environment of its own. Not
 * OK: nothing is pushed and error says why, with file:line. */
enum sandbox_stop cage_load(struct sandbox *s, const char *path,
                            char error[SANDBOX_ERROR_MAX]) MUST_CHECK;

/* The same with text, which errors call `name`. */
enum sandbox_stop cage_load_text(struct sandbox *s, const char *name, const char *text, size_t n,
                                 char error[SANDBOX_ERROR_MAX]) MUST_CHECK;

/* The rest is for C functions that run inside a call: they may throw. */
/* Pops a value and makes it a global of every environment made later. */
void cage_share(lua_State *L, const char *name);
/* Pops a table and pushes a read-only view of it: reading and pairs() work, changing it throws. */
void cage_freeze(lua_State *L);

#endif
