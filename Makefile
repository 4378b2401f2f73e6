# chromux: build, run, test. `make help` lists what there is.

VERSION  := 0.1.0
PREFIX   ?= /usr/local
DESTDIR  ?=
BUILD    ?= build
CC       ?= cc

# The modules of core/ in their one total order: a file includes only headers to its left
# (scripts/order.sh checks it), and a unit test links its module and those left of it.
ORDER := base end log buf metrics config http1 route wheel dns stream fetch pg fleet pool script \
         settings policy api access health session exchange proxy probe admin listener main

PKGS   := luajit libcurl libpq libcares
CFLAGS ?= -O2 -g
WARN   := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
          -Wpointer-arith -Wwrite-strings -Wvla -Wno-unused-parameter -Werror
ALL_CFLAGS = $(CFLAGS) $(WARN) -fno-strict-aliasing -D_GNU_SOURCE -Icore \
             -DCHROMUX_VERSION='"$(VERSION)"' $(shell pkg-config --cflags $(PKGS)) $(SAN)
ALL_LDLIBS = $(LDFLAGS) -rdynamic $(shell pkg-config --libs $(PKGS)) -lev -lm $(SAN)

# What was written so far: modules whose .c exists.
MODULES := $(foreach m,$(ORDER),$(if $(wildcard core/$m.c),$m))
OBJS    := $(MODULES:%=$(BUILD)/core/%.o) $(BUILD)/embed.o
LUA     := $(shell find lua -name '*.lua' -o -name '*.sql' -o -name '*.html' 2>/dev/null)

all: $(BUILD)/chromux

$(BUILD)/chromux: $(OBJS)
	$(CC) $(ALL_CFLAGS) -o $@ $(OBJS) $(ALL_LDLIBS)

$(BUILD)/core/%.o: core/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# The files of lua/ as bytes inside the program (script.h: script_files).
$(BUILD)/embed.c: $(LUA) scripts/embed.sh
	@mkdir -p $(@D)
	sh scripts/embed.sh $(LUA) > $@.tmp && mv $@.tmp $@
$(BUILD)/embed.o: $(BUILD)/embed.c
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

# ---- unit tests: tests/unit/<module>_test.c links <module> and those left of it -----------------
upto    = $(shell for m in $(MODULES); do echo $$m; [ $$m = $(1) ] && break; done)
UNITS   := $(patsubst tests/unit/%_test.c,%,$(wildcard tests/unit/*_test.c))
UNIT_BINS := $(UNITS:%=$(BUILD)/unit/%_test)
.SECONDEXPANSION:
$(BUILD)/unit/%_test: tests/unit/%_test.c $$(patsubst %,$(BUILD)/core/%.o,$$(call upto,$$*)) $(BUILD)/embed.o
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Itests/unit -o $@ $< $(patsubst %,$(BUILD)/core/%.o,$(call upto,$*)) \
	    $(if $(filter script,$(call upto,$*)),$(BUILD)/embed.o) $(ALL_LDLIBS) -lcmocka
unit: $(UNIT_BINS)
	@set -e; for t in $(UNIT_BINS); do echo "== $$t"; $$t; done

clean:
	rm -rf $(BUILD)

-include $(OBJS:.o=.d)
.PHONY: all unit clean
