# chromux: build, run, test. `make help` lists what there is.

VERSION  := 0.1.0
PREFIX   ?= /usr/local
DESTDIR  ?=
BUILD    ?= build
CC       ?= cc
JOBS     ?= $(shell nproc)

# The modules of core/ in their one total order: a file includes only headers to its left
# (scripts/order.sh checks it), and a unit test links its module and those left of it.
ORDER := base end log buf metrics roster value config slice records \
         http1_bytes http1_chunks http1 body reply route wheel dns stream fetch \
         pg_url pg_pipe pg_news pg kernel disk usage \
         fleet copies pool fault courier \
         plant script sandbox cage ask lb loader verdict settings policy kit \
         pg_lua task api api_slice api_records api_route api_policy api_copies api_courier api_usage engine \
         access health session mapped onward exchange proxy journal probe admin \
         listener role supervise main

PKGS   := luajit libcurl libpq libcares
CFLAGS ?= -O2 -g
WARN   := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
          -Wpointer-arith -Wwrite-strings -Wvla -Wno-unused-parameter -Werror
ALL_CFLAGS = $(CFLAGS) $(WARN) -fno-strict-aliasing -D_GNU_SOURCE -Icore \
             -DCHROMUX_VERSION='"$(VERSION)"' $(if $(FAULTS),-DCHROMUX_FAULTS) $(shell pkg-config --cflags $(PKGS)) $(SAN)
ALL_LDLIBS = $(LDFLAGS) -rdynamic $(shell pkg-config --libs $(PKGS)) -lev -lm $(SAN)

# What was written so far: modules whose .c exists.
MODULES := $(foreach m,$(ORDER),$(if $(wildcard core/$m.c),$m))
OBJS    := $(MODULES:%=$(BUILD)/core/%.o) $(BUILD)/embed.o
LUA     := $(shell find lua -name '*.lua' -o -name '*.sql' -o -name '*.html' 2>/dev/null | LC_ALL=C sort)

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

# ---- people's commands ---------------------------------------------------------------------------
help:
	@echo 'make            builds $(BUILD)/chromux'
	@echo 'make run        everything that is needed, two Chroma servers and chromux on port 8000'
	@echo 'make reload     that chromux reads its policies and configuration again'
	@echo 'make test       set-up, build, all tests, the same with sanitizers, lint'
	@echo 'make unit spec integration asan check    parts of it, after make setup-test'
	@echo 'make sim        the journal engine in 2,000 seeds of simulated faults, and whether planted faults are seen'
	@echo 'make test-newest  the integration tests against the newest Chroma server'
	@echo 'make test-rounds  servers and chromux killed and stopped under load, 20 rounds of each (ROUNDS=N)'
	@echo 'make chaos      200 rounds of seeded faults, each judged by what clients and servers saw; CHAOS="--seed N"'
	@echo 'make chaos-sync 20 such rounds with workers, in which servers lose what they have'
	@echo 'make chaos-plants  whether such rounds see bugs that are put into the program; PLANT="name of one"'
	@echo 'make fuzz       fuzz targets in turn, 10 minutes in all; FUZZ_SECONDS=N for N each'
	@echo 'make bench      chromux against HAProxy, nginx and a bare relay (MODE=quick: a short look)'
	@echo 'make bench-writes bench-reads    the journal against one Chroma server alone; MODE=quick here too'
	@echo 'make bench-sync  rebuilding a wiped server against a plain script'
	@echo 'make bench-monitor  CPU and memory of the monitor that samples ten servers each second'
	@echo 'make install    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'make clean      removes $(BUILD); data and logs of make run are in var/'

setup-%:
	@scripts/setup.sh $*

# Ctrl-C is to stop it, even where whoever started us had it ignored, as a shell does for what it
# runs in the background.
run: setup-run
	@$(MAKE) -s --no-print-directory -j$(JOBS) all
	@exec env --default-signal=INT CHROMUX=$(BUILD)/chromux scripts/dev.sh

reload:
	@scripts/dev.sh reload

test: setup-test
	@$(MAKE) -s --no-print-directory -j$(JOBS) unit-build integration-build asan-build chaos-build
	@BUILD=$(BUILD) scripts/test.sh unit spec sim integration chaos asan check

check:
	@scripts/check.sh
print-ORDER:
	@echo $(ORDER)

# ---- unit tests: tests/unit/<module>_test.c links <module> and those left of it -----------------
upto    = $(filter-out main,$(shell for m in $(MODULES); do echo $$m; [ $$m = $(1) ] && break; done))
UNITS   := $(patsubst tests/unit/%_test.c,%,$(wildcard tests/unit/*_test.c))
UNIT_BINS := $(UNITS:%=$(BUILD)/unit/%_test)
# Where tests find the PostgreSQL server: the machine's or the one that set-up unpacked.
PG_BIN   = $(shell scripts/pg.sh bin 2>/dev/null)
TEST_CFLAGS = $(ALL_CFLAGS) $(if $(PG_BIN),-DPGSERVER_BIN='"$(PG_BIN)"') -MMD -MP -MF $@.d -MT $@
.SECONDEXPANSION:
$(BUILD)/unit/%_test: tests/unit/%_test.c $$(addprefix $(BUILD)/core/,$$(addsuffix .o,$$(call upto,$$*))) $(BUILD)/embed.o
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -Itests/unit -o $@ $< $(patsubst %,$(BUILD)/core/%.o,$(call upto,$*)) \
	    $(if $(filter script,$(call upto,$*)),$(BUILD)/embed.o) $(ALL_LDLIBS) -lcmocka
unit-build: $(UNIT_BINS)
unit: unit-build
	@BUILD=$(BUILD) scripts/test.sh unit
spec: $(BUILD)/chromux
	@BUILD=$(BUILD) scripts/test.sh spec

# ---- the simulation: tests/sim ---------------------------------------------------------------------
sim: $(BUILD)/chromux
	@$(BUILD)/chromux script tests/sim/mutants.lua
	@$(BUILD)/chromux script tests/sim/run.lua 0 2000

# ---- integration tests: tests/integration/*_test.c against the real program ----------------------
# Each is linked with the other files of that folder, and with nothing of core/.
HARNESS := $(patsubst tests/integration/%.c,$(BUILD)/integration/%.o,\
    $(filter-out %_test.c,$(wildcard tests/integration/*.c)))
INTEGRATION_BINS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/integration/*_test.c))
$(BUILD)/integration/%.o: tests/integration/%.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -Itests/integration -c -o $@ $<
$(BUILD)/integration/%_test: tests/integration/%_test.c $(HARNESS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -Itests/integration -o $@ $< $(HARNESS) \
	    $(shell pkg-config --libs libcurl libpq) -lcmocka -lpthread -lm $(SAN)
integration-build: $(BUILD)/chromux $(INTEGRATION_BINS)
integration: integration-build
	@BUILD=$(BUILD) scripts/test.sh integration
test-newest: setup-test
	@scripts/chroma.sh fetch-newest
	@$(MAKE) -s --no-print-directory -j$(JOBS) integration-build
	@BUILD=$(BUILD) TEST_CHROMA=newest scripts/test.sh integration

test-rounds: setup-test
	@$(MAKE) -s --no-print-directory -j$(JOBS) integration-build
	@TEST_ROUNDS=$(or $(ROUNDS),20) TEST_TIMEOUT=3600 ONLY='integration/*failover' BUILD=$(BUILD) \
	    scripts/test.sh integration

# ---- the same with AddressSanitizer, LeakSanitizer and UBSan -------------------------------------
ASAN = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
asan-build: integration-build
	@$(MAKE) -s --no-print-directory BUILD=$(BUILD)/asan CFLAGS='-O1 -g' SAN='$(ASAN)' all unit-build
asan: asan-build
	@BUILD=$(BUILD) scripts/test.sh asan

# ---- fuzzing: tests/fuzz/<module>_fuzz.c (libFuzzer) links as a unit test does; *_fuzz.sh are run ---
# With what it needs of the other files there and of llhttp, whose sources Debian's node-llhttp brings.
FUZZ_BINS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz/*_fuzz.c))
FUZZ_HELP := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%.o,\
    $(filter-out %_fuzz.c,$(wildcard tests/fuzz/*.c))) $(addprefix $(BUILD)/fuzz/llhttp/,api.o http.o llhttp.o)
LLHTTP := -DLLHTTP_STRICT_MODE=1 -I/usr/share/include/llhttp
$(BUILD)/fuzz/llhttp/%.o: /usr/share/llhttp/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(SAN) $(LLHTTP) -w -c -o $@ $<
$(BUILD)/fuzz/%.o: tests/fuzz/%.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $(LLHTTP) -Itests/fuzz -c -o $@ $<
$(BUILD)/fuzz/help.a: $(FUZZ_HELP)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/fuzz/%_fuzz: tests/fuzz/%_fuzz.c $$(addprefix $(BUILD)/core/,$$(addsuffix .o,$$(call upto,$$*))) \
    $(BUILD)/embed.o $(BUILD)/fuzz/help.a
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $(LLHTTP) -fsanitize=fuzzer -Itests/fuzz -o $@ $< \
	    $(patsubst %,$(BUILD)/core/%.o,$(call upto,$*)) \
	    $(if $(filter script,$(call upto,$*)),$(BUILD)/embed.o) $(BUILD)/fuzz/help.a $(ALL_LDLIBS)
fuzz-build: $(FUZZ_BINS)
fuzz: setup-fuzz
	@$(MAKE) -s --no-print-directory -j$(JOBS) BUILD=$(BUILD)/clang CC=clang-14 CFLAGS='-O1 -g' \
	    SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' fuzz-build
	@$(if $(wildcard tests/fuzz/*_fuzz.sh),$(MAKE) -s --no-print-directory -j$(JOBS) asan-build)
	@BUILD=$(BUILD) scripts/fuzz.sh

bench: setup-bench
	@$(MAKE) -s --no-print-directory -j$(JOBS) all
	@PATH="$$PATH:/usr/sbin:$$(scripts/setup.sh bin)" BUILD=$(BUILD) bash tests/bench/run.sh $(MODE)
bench-writes bench-reads bench-sync bench-monitor: bench-%: setup-bench
	@$(MAKE) -s --no-print-directory -j$(JOBS) all
	@BUILD=$(BUILD) bash tests/bench/$*.sh $(MODE)

# ---- the history checker: seeded faults on real servers (tests/chaos/run.lua) -----------------------
# With a program that may die at named steps (core/fault.h). CHAOS: its options, such as --seed 7.
$(BUILD)/chaos/wrap: tests/chaos/wrap.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) -D_GNU_SOURCE -o $@ $< -lpthread
chaos-build: $(BUILD)/chaos/wrap all
	@$(MAKE) -s --no-print-directory BUILD=$(BUILD)/faults FAULTS=1 all
RUN_CHAOS = $(BUILD)/chromux script tests/chaos/run.lua --chromux $(BUILD)/faults/chromux
chaos: setup-test
	@$(MAKE) -s --no-print-directory -j$(JOBS) chaos-build
	@$(RUN_CHAOS) --rounds $(or $(CHAOS_ROUNDS),200) $(CHAOS)
chaos-sync: setup-test
	@$(MAKE) -s --no-print-directory -j$(JOBS) chaos-build
	@$(RUN_CHAOS) --kind sync --rounds $(or $(CHAOS_ROUNDS),20) $(CHAOS)
chaos-plants: setup-test
	@$(MAKE) -s --no-print-directory -j$(JOBS) chaos-build
	@$(RUN_CHAOS) --plant '$(or $(PLANT),all)' $(CHAOS)

# ---- installing ----------------------------------------------------------------------------------
SHARE = $(DESTDIR)$(PREFIX)/share/chromux
install: $(BUILD)/chromux
	install -d $(DESTDIR)$(PREFIX)/bin $(SHARE)/policies $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(BUILD)/chromux $(DESTDIR)$(PREFIX)/bin/chromux
	install -m 644 $(wildcard policies/*) $(SHARE)/policies
	install -m 644 README.md CHANGELOG.md LICENSE $(SHARE)
	sed 's|@PREFIX@|$(PREFIX)|g' deploy/chromux.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/chromux.service

clean:
	rm -rf $(BUILD)

-include $(OBJS:.o=.d) $(UNIT_BINS:=.d) $(HARNESS:=.d) $(INTEGRATION_BINS:=.d) \
    $(FUZZ_BINS:=.d) $(FUZZ_HELP:=.d)
.PHONY: all help run reload test check print-ORDER unit unit-build spec sim integration integration-build \
    test-newest test-rounds asan asan-build chaos chaos-sync chaos-plants chaos-build fuzz fuzz-build bench bench-writes bench-reads bench-sync bench-monitor install clean
