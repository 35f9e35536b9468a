# refsae: make, make demo, make deps test. Needs a C compiler and make; OPENMP=no builds without threads (as does a
# compiler that has no OpenMP), SIMD=no without vector kernels. make check runs the tests without Criterion.

# SMALL=1: for machines with little (PORTING.md): no threads, vector kernels or maps, neither bench nor vectors, and of
# FORMATS.md the headings; static, stripped.
ifdef SMALL
BUILD   ?= build-small
PROGRAM ?= $(BUILD)/refsae
OPENMP  ?= no
SIMD    ?= no
SMALLER := -DREFSAE_SMALL -DREFSAE_NO_MMAP -ffunction-sections -fno-asynchronous-unwind-tables \
    -fno-math-errno
LEFT_OUT := bench vectors
LDFLAGS ?= -static -s -Wl,--gc-sections -Wl,-z,noseparate-code -Wl,-z,norelro
endif

CC      ?= cc
BUILD   ?= build
PREFIX  ?= /usr/local
PROGRAM ?= refsae
DEMO    ?= demo
OPT     ?= $(if $(SMALL),-Os,-O2)
SAN     ?=

WARN    := -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
CFLAGS  ?=
DEPS    ?= -MMD -MP
# What the compiler says of its target; -m32 and the like count.
MACROS  := $(shell $(CC) $(CFLAGS) -E -dM -x c /dev/null | awk '{ print $$2 }')
ALL_CFLAGS := -std=c99 -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64 $(OPT) $(SMALLER) -ffp-contract=off $(WARN) $(SAN) $(CFLAGS)

ifndef OPENMP
OPENMP := $(shell mkdir -p $(BUILD) && echo 'int main(void) { return omp_get_max_threads() < 1; }' | \
    $(CC) $(CFLAGS) -fopenmp -include omp.h -x c - $(LDFLAGS) -o $(BUILD)/openmp 2>/dev/null && echo yes || echo no)
$(if $(filter no,$(OPENMP)),$(info $(CC) has no OpenMP: building without threads))
endif
ifeq ($(OPENMP),yes)
ALL_CFLAGS += -fopenmp
else
ALL_CFLAGS += -fopenmp-simd -Wno-unknown-pragmas
endif

# Where floats would be computed as something wider.
ifneq ($(filter __i386__,$(MACROS)),)
ALL_CFLAGS += -msse2 -mfpmath=sse
else ifneq ($(filter __s390x__,$(MACROS)),)
ALL_CFLAGS += $(if $(filter __clang__,$(MACROS)),,-fexcess-precision=fast)
endif

# FMA=own: that of elementary.c, where the compiler knows no instruction (libc chooses one for x86 at run time).
FMA     ?= $(if $(filter __FP_FAST_FMA __x86_64__ __i386__ __aarch64__,$(MACROS)),libm,own)
ALL_CFLAGS += $(if $(filter own,$(FMA)),-DREFSAE_OWN_FMA)

# SIMD=no builds without kernels_simd.c, which may also be deleted: the same bits, slower.
SIMD    ?= $(if $(wildcard kernels_simd.c),yes,no)
SOURCES := $(filter-out main.c kernels_simd.c $(LEFT_OUT:%=%.c),$(wildcard *.c))

# The loops once more for each instruction set of this processor; -O3 vectorises across outputs. These
# flags change no value: no code reads errno or floating-point traps.
FAST    := -fno-math-errno -fno-trapping-math $(if $(filter -O2,$(OPT)),-O3)
PLAIN   := -fno-tree-vectorize -fno-tree-slp-vectorize
ifeq ($(words $(filter __x86_64__ __GNUC__,$(MACROS))),2)
ALL_CFLAGS += -DKERNELS_X86_64
SETS    := scalar_fma
ISAS    := avx2 avx512
else ifneq ($(filter __aarch64__,$(MACROS)),)
ALL_CFLAGS += -DKERNELS_AARCH64
ISAS    := neon
endif
FLAGS_avx2   := -DSIMD_AVX2 -mavx2 -mfma -mf16c
FLAGS_avx512 := -DSIMD_AVX512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512
FLAGS_neon   := -DSIMD_NEON
ifeq ($(SIMD),yes)
ALL_CFLAGS += -DKERNELS_SIMD
else
ISAS    :=
endif
# The sets first in line: they take the longest to compile.
OBJECTS := $(ISAS:%=$(BUILD)/kernels_simd.%.o) $(SETS:%=$(BUILD)/kernels.%.o) $(SOURCES:%.c=$(BUILD)/%.o)
TEST_FILES := $(filter-out $(LEFT_OUT:%=tests/test_%.c),$(wildcard tests/test_*.c))
TESTS   := $(TEST_FILES:tests/%.c=$(BUILD)/%.o)

# What was built with others is built anew. (SAN= has a BUILD of its own.)
ASKED   := $(CC) $(OPT) $(CFLAGS) $(LDFLAGS) OPENMP=$(OPENMP) SIMD=$(SIMD) FMA=$(FMA)
$(shell mkdir -p $(BUILD); echo '$(ASKED)' | cmp -s - $(BUILD)/asked || echo '$(ASKED)' >$(BUILD)/asked)

all: $(PROGRAM)

$(PROGRAM): $(OBJECTS) $(BUILD)/main.o
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/%.o: %.c $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) $(DEPS) -c -o $@ $<

$(BUILD)/kernels.o: ALL_CFLAGS += $(FAST) $(PLAIN)
$(BUILD)/sae.o: ALL_CFLAGS += $(FAST)

# Static patterns: as implicit rules they would also make kernels.d "from" kernels.d.o.
$(ISAS:%=$(BUILD)/kernels_simd.%.o): $(BUILD)/kernels_simd.%.o: kernels_simd.c $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) $(FAST) $(FLAGS_$*) -DKERNEL_SET=kernel_set_$* -DKERNEL_SET_NAME='"$*"' $(DEPS) -c -o $@ $<

# x86-64 with the processor's fma instead of libm's.
$(BUILD)/kernels.scalar_fma.o: kernels.c $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) $(FAST) $(PLAIN) -mfma -DKERNEL_SET=kernel_set_scalar_fma $(DEPS) -c -o $@ $<

# Files as bytes, so that the program runs without any: $(call EMBED,TABLE,FOLDER,SUFFIX,FILES) prints a
# table of {name below the folder and without the suffix, text, size}.
EMBED = set -e; n=0; for file in $(4); do \
    printf 'static const unsigned char $(1)_%d[] = {\n' $$n; n=$$((n + 1)); \
    od -An -v -tx1 $$file | sed 's/[0-9a-f][0-9a-f]/0x&,/g'; printf '0};\n'; done; \
    printf 'static const struct {\n    const char *name;\n    const unsigned char *text;\n    size_t size;\n} $(1)[] = {\n'; \
    n=0; for file in $(4); do name=$${file\#$(2)/}; \
    printf '{"%s", $(1)_%d, sizeof $(1)_%d - 1},\n' $${name%$(3)} $$n $$n; n=$$((n + 1)); done; printf '};\n'

# A circuit is no task: cross-sections of one.
TASK_FILES     := $(sort $(filter-out %-circuit.json,$(wildcard tasks/*.json)))
SELFTEST_FILES := $(sort $(shell find selftest ! -type d))
ifdef SMALL
SELFTEST_FILES := $(filter-out $(patsubst %,selftest/%,vectors.json tokenizers/% sae/% dictionary/% sparsify/% gemma-%) \
    $(filter-out $(wildcard selftest/images/?.*),$(wildcard selftest/images/*)),$(SELFTEST_FILES))
endif
$(BUILD)/tasks.h: $(TASK_FILES)
	@($(call EMBED,shipped_tasks,tasks,.json,$(TASK_FILES))) >$@

$(BUILD)/selftest_files.h: $(SELFTEST_FILES)
	@($(call EMBED,selftest_files,selftest,,$(SELFTEST_FILES))) >$@

$(BUILD)/page_style.h: page.css
	@($(call EMBED,page_style,.,.css,page.css)) >$@

$(BUILD)/page_text.h: page.txt
	@($(call EMBED,page_text,.,.txt,page.txt)) >$@

$(BUILD)/FORMATS.md: FORMATS.md
	@awk '$(if $(SMALL),/^## / { print "\n" $$0 "\n\nThe small build leaves this out: see FORMATS.md." },1)' $< >$@

$(BUILD)/formats.h: $(BUILD)/FORMATS.md
	@($(call EMBED,formats,$(BUILD),.md,$<)) >$@

$(BUILD)/figure.o: $(BUILD)/page_style.h
$(BUILD)/folder.o: $(BUILD)/page_text.h
$(BUILD)/main.o: $(BUILD)/formats.h
$(BUILD)/selftest.o: $(BUILD)/selftest_files.h
$(BUILD)/task.o: $(BUILD)/tasks.h
$(BUILD)/figure.o $(BUILD)/folder.o $(BUILD)/main.o $(BUILD)/selftest.o $(BUILD)/task.o: ALL_CFLAGS += -I$(BUILD)

$(BUILD)/%.o: tests/%.c $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) -I. $(DEPS) -c -o $@ $<

$(BUILD)/tests: $(TESTS) $(OBJECTS)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcriterion -lm

test: $(PROGRAM) $(BUILD)/tests $(BUILD)/replay
	sh tests/house.sh
	sh tests/papers.sh
	$(BUILD)/replay
	REFSAE=./$(PROGRAM) $(BUILD)/tests --jobs 2

# The readers fed with files that a fuzzer makes (tests/fuzz/README.md); $(BUILD)/replay reads what it kept.
FUZZED  := $(BUILD)/fuzz.o $(filter-out $(BUILD)/run_mapping.o $(BUILD)/run_sage.o,$(OBJECTS))
$(BUILD)/fuzz.o: tests/fuzz/fuzz.c $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) -I. -MMD -MP -c -o $@ $<

$(BUILD)/replay: $(FUZZED)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/fuzz: $(FUZZED)
	$(CC) $(ALL_CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ -lm

fuzz:
	$(MAKE) CC=clang OPENMP=no SIMD=no OPT=-O1 BUILD=build-fuzz build-fuzz/fuzz \
	    SAN="-g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"

# The same tests without Criterion, by a header of our own.
CHECKS  := $(TEST_FILES:tests/%.c=$(BUILD)/check.%.o)
$(BUILD)/check.%.o: tests/%.c tests/check/criterion/criterion.h $(BUILD)/asked
	$(CC) $(ALL_CFLAGS) -I. -isystem tests/check $(DEPS) -c -o $@ $<

$(BUILD)/checks: $(CHECKS) $(OBJECTS)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

check: $(PROGRAM) $(BUILD)/checks
	REFSAE=./$(PROGRAM) $(BUILD)/checks

# `make deps test` in one call: the library first, whatever runs beside.
ifneq ($(filter deps,$(MAKECMDGOALS)),)
$(TESTS): | deps
endif

# What the tests need, on Debian and its kin: the Criterion library.
deps:
	$(if $(filter 0,$(shell id -u)),,sudo) sh -c 'apt-get update && apt-get install -y --no-install-recommends libcriterion-dev'

# Train, evaluate (and once more with image tokens permuted across images), analyse; SAGE on three models and on a
# planted one, there with the SAE that is right and with one whose features are merged.
VLM   := --llm weights/gemma2 --vision weights/clip --images weights/images
TUNED := --adapter $(DEMO)/adapter.safetensors
SAGE  := --train 200 --test 100
PLANT := --task weights/planted/task.json --prompts weights/planted/prompts.jsonl --share 0.99 --max-nodes 32
demo: $(PROGRAM)
	./$(PROGRAM) train $(VLM) --data weights/train.json --lr 8e-3 --batch 8 --accumulate 1 --epochs 3 --tokens 64 --out $(DEMO)
	./$(PROGRAM) eval $(VLM) $(TUNED) --questions weights/questions.jsonl --out $(DEMO)
	./$(PROGRAM) eval $(VLM) $(TUNED) --questions weights/questions.jsonl --permute-images --out $(DEMO)/permuted
	./$(PROGRAM) analyze $(VLM) $(TUNED) --saes weights/saes/gemma2 --data weights/heldout.json --examples 60 \
	    --descriptions weights/descriptions --max-frequency 0.5 --max-density 0.5 \
	    --compare weights/mapping_published.csv --out $(DEMO)
	./$(PROGRAM) sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi $(SAGE) --out $(DEMO)/sage-gpt2
	./$(PROGRAM) sage --llm weights/gpt_neox --saes weights/saes/gpt_neox --task agreement $(SAGE) --out $(DEMO)/sage-gpt_neox
	./$(PROGRAM) sage --llm weights/gemma2 --saes weights/saes/gemma2 --task induction $(SAGE) --out $(DEMO)/sage-gemma2
	./$(PROGRAM) sage --llm weights/planted/gpt2 --saes weights/planted/saes/perfect $(PLANT) --out $(DEMO)/sage-planted
	./$(PROGRAM) sage --llm weights/planted/gpt2 --saes weights/planted/saes/merged $(PLANT) --out $(DEMO)/sage-merged
	./$(PROGRAM) report --out $(DEMO)/report.html --title "refsae demo" $(DEMO) $(DEMO)/permuted $(DEMO)/sage-gpt2 \
	    $(DEMO)/sage-gpt_neox $(DEMO)/sage-gemma2 $(DEMO)/sage-planted $(DEMO)/sage-merged
	@echo "look at $(DEMO)/report.html"

# The table of BITS.md, from what compilers and emulators this machine has.
bits:
	sh tests/bits.sh

bench: $(PROGRAM)
	./$(PROGRAM) bench

# Commands at Gemma-2-2B's and CLIP ViT-L/14's shapes, with so many of 26 layers, on random weights that Python
# (torch, transformers) writes into FULL once.
FULL   ?= build/full
LAYERS ?= 4
bench-full: $(PROGRAM)
	python3 tests/reference/bench_torch.py --dir $(FULL) --layers $(LAYERS) --write
	./$(PROGRAM) bench --llm $(FULL)/gemma2-$(LAYERS) --vision $(FULL)/clip --saes $(FULL)/saes-$(LAYERS)

# Man page and completion are printed from the program's tables of options.
MAN        := share/man/man1/refsae.1
COMPLETION := share/bash-completion/completions/refsae
install: $(PROGRAM) $(BUILD)/refsae.1 $(BUILD)/refsae.bash
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/refsae
	install -D -m 644 $(BUILD)/refsae.1 $(DESTDIR)$(PREFIX)/$(MAN)
	install -D -m 644 $(BUILD)/refsae.bash $(DESTDIR)$(PREFIX)/$(COMPLETION)

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/refsae $(MAN) $(COMPLETION))

$(BUILD)/refsae.1: $(PROGRAM)
	./$(PROGRAM) help --man >$@

$(BUILD)/refsae.bash: $(PROGRAM)
	./$(PROGRAM) help --bash-completion >$@

# Every input of the elementary functions, in every form this processor has. Needs libmpfr-dev.
prove: $(BUILD)/prove
	$(BUILD)/prove

$(BUILD)/prove: $(BUILD)/prove.o $(OBJECTS)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lmpfr -lm

# What fails, fails as SPEC section 10 says: by tests/faults/run.sh, on Linux. FAULTS=0: every failure, hours.
FAULTS ?= 4
KILLS  ?= 4
faults: $(PROGRAM) $(BUILD)/faults.so
	sh tests/faults/run.sh ./$(PROGRAM) $(BUILD)/faults.so $(FAULTS) $(KILLS)

$(BUILD)/faults.so: tests/faults/faults.c
	$(CC) -std=gnu99 $(OPT) $(WARN) $(CFLAGS) -shared -fPIC $(LDFLAGS) -o $@ $<

# Branches of the source that the tests take, by Clang; what that counts, and the bars: tests/coverage.sh.
COVERAGE := CC=clang OPENMP=no OPT=-O1 SAN="-g -fprofile-instr-generate -fcoverage-mapping" \
    BUILD=build-coverage PROGRAM=build-coverage/refsae
coverage:
	$(MAKE) $(COVERAGE) build-coverage/refsae build-coverage/tests build-coverage/faults.so
	sh tests/coverage.sh build-coverage

# What analysers and provers say of the source (tests/analyze.sh, tests/proofs), and what valgrind and Clang's
# MemorySanitizer and ThreadSanitizer say of selftest. A part whose tool is missing says so. MemorySanitizer does not
# know the functions for files above 2 GiB, nor what libc hands to a fopencookie, which is used on Linux: undefined,
# so is that.
MEMORY := CC=clang OPENMP=no OPT=-O1 SAN="-g -fsanitize=memory -U_FILE_OFFSET_BITS -U__linux__" BUILD=build-msan PROGRAM=build-msan/refsae
# ThreadSanitizer knows OpenMP's barriers by Archer, of libomp-dev.
THREADS := CC=clang OPENMP=yes SIMD=no OPT=-O1 SAN="-g -fsanitize=thread" BUILD=build-tsan PROGRAM=build-tsan/refsae
ARCHER  = $(shell clang -print-resource-dir)/../../libarcher.so
analyze-static: $(PROGRAM)
	sh tests/analyze.sh
	sh tests/proofs/run.sh
	OMP_WAIT_POLICY=passive REFSAE_ISA=scalar valgrind -q --leak-check=full --error-exitcode=1 ./$(PROGRAM) selftest --threads 1 >/dev/null
	$(MAKE) $(MEMORY) build-msan/refsae
	build-msan/refsae selftest >/dev/null
	$(MAKE) $(THREADS) build-tsan/refsae
	OMP_NUM_THREADS=4 OMP_TOOL_LIBRARIES=$(ARCHER) TSAN_OPTIONS=ignore_noninstrumented_modules=1 build-tsan/refsae selftest >/dev/null

clean:
	rm -rf $(BUILD) $(PROGRAM) $(DEMO) build-bits

MAKEFLAGS += --no-builtin-rules -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
-include $(wildcard $(BUILD)/*.d)

# A target of a recipe that was interrupted is not kept.
.DELETE_ON_ERROR:

.PHONY: all test fuzz check deps demo bits bench bench-full install uninstall prove faults coverage analyze-static clean
