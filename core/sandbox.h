/* sandbox.h: a VM with limits: capped memory, counted instructions, wall time. It guards against
 * mistakes and is no security boundary. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include "script.h"

enum sandbox_stop {
    SANDBOX_OK,
    SANDBOX_ERROR,
    SANDBOX_BUDGET, /* instructions */
    SANDBOX_TIME,
    SANDBOX_MEMORY
};

struct sandbox_limits {
    size_t memory;  /* bytes, the VM itself included */
    long budget;    /* Lua instructions a call */
    double seconds; /* processor time a call */
};

enum { SANDBOX_ERROR_MAX = 512 };

/* open runs protected and makes what the code may use. JIT off: compiled code runs no hooks. NULL:
 * the memory cap does not even hold that. */
struct sandbox *sandbox_new(const struct sandbox_limits *limits, lua_CFunction open) MUST_CHECK;
void sandbox_free(struct sandbox *s);
lua_State *sandbox_lua(const struct sandbox *s);
size_t sandbox_memory(const struct sandbox *s);

/* Calls the function under its nargs arguments within the limits, which a pcall or a coroutine of
 * the callee cannot get round. Not OK: the stack holds nothing of the call and error has the
 * message with file:line. */
enum sandbox_stop sandbox_call(struct sandbox *s, int nargs, int nresults,
                               char error[SANDBOX_ERROR_MAX]) MUST_CHECK;

/* Calls from now on may use so many times the budget and the time. */
void sandbox_scale(struct sandbox *s, unsigned times);

/* Collects garbage if the VM was refused memory; for who fills it outside of a call. */
void sandbox_relieve(struct sandbox *s);

/* A C function that is needed where nothing is protected is made once, in sandbox_new()'s open or
 * another protected call, since a VM that has used up its memory cannot make it. */
void sandbox_pin(lua_State *L, lua_CFunction fn);
void sandbox_push_pinned(lua_State *L, lua_CFunction fn);

/* For C functions that run inside a call and may have taken long: ends the call if time is up. */
void sandbox_look(lua_State *L);

#endif
