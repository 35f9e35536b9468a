/* faults.c: a library to preload (LD_PRELOAD) in which the n-th allocation or system call of a kind
 * fails. FAULT=KIND:N lets one fail, KIND:N+ it and all after it, FAULT_LOG=FILE is
 * left with "KIND COUNT" for each kind, and "live COUNT": allocations that were never freed.
 *
 * System calls are caught by the kernel (seccomp), since stdio makes its own without asking a
 * library; each comes back as SIGSYS, is counted, and is made again from the one place that the
 * filter lets through. Linux on x86-64 or aarch64, with glibc. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const struct {
    const char *name;
    int code; /* errno */
} kinds[] = {{"alloc", ENOMEM}, {"open", EMFILE}, {"read", EIO},   {"write", ENOSPC},
             {"sync", EIO},     {"rename", EIO},  {"map", ENOMEM}, {"close", EIO},
             {"list", EIO},     {"look", EIO},    {"link", EIO},   {"mkdir", ENOSPC},
             {"seek", EIO},     {"settle", EIO},  {"kill", 0},     {"interrupt", 0}};
enum {
    ALLOC,
    KINDS = sizeof kinds / sizeof *kinds
};

/* list: of a directory's entries; look: stat; link: what realpath reads; settle: fsync of a
 * directory; kill, interrupt: SIGKILL or SIGINT before the n-th call of any kind. */
static const struct {
    const char *kind;
    long number;
} calls[] = {
    {"open", SYS_openat},     {"read", SYS_read},        {"read", SYS_pread64},
    {"write", SYS_write},     {"write", SYS_writev},     {"sync", SYS_fsync},
    {"rename", SYS_renameat}, {"rename", SYS_renameat2}, {"map", SYS_mmap},
    {"close", SYS_close},     {"list", SYS_getdents64},  {"look", SYS_newfstatat},
    {"look", SYS_fstat},      {"link", SYS_readlinkat},  {"mkdir", SYS_mkdirat},
    {"seek", SYS_lseek},
#ifdef SYS_rename /* x86-64 has the older ones too */
    {"open", SYS_open},       {"rename", SYS_rename},    {"look", SYS_stat},
    {"look", SYS_lstat},      {"link", SYS_readlink},    {"mkdir", SYS_mkdir},
#endif
};
enum {
    CALLS = sizeof calls / sizeof *calls
};

static int armed, kept, kind = -1, onwards;
static long at, counts[KINDS], live;

static int kind_of(const char *name) {
    int k = KINDS;
    while (k-- > 0 && strcmp(kinds[k].name, name) != 0) {
    }
    return k;
}

/* Counts one of kind k; whether it is to fail. */
static int fails(int k) {
    if (!armed) {
        return 0;
    }
    long n = __atomic_add_fetch(&counts[k], 1, __ATOMIC_RELAXED);
    return k == kind && (n == at || (onwards && n > at));
}

/* ---- allocations ---- */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void __libc_free(void *memory);

static void *allocated(void *memory) {
    __atomic_add_fetch(&live, armed && memory != NULL, __ATOMIC_RELAXED);
    return memory;
}

static int refused(void) {
    int refuse = fails(ALLOC);
    errno = refuse ? ENOMEM : errno;
    return refuse;
}

void *malloc(size_t size) {
    return refused() ? NULL : allocated(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
    return refused() ? NULL : allocated(__libc_calloc(count, size));
}

void *realloc(void *old, size_t size) {
    if (refused()) {
        return NULL;
    }
    return old == NULL ? allocated(__libc_realloc(old, size)) : __libc_realloc(old, size);
}

void free(void *memory) {
    __atomic_sub_fetch(&live, armed && memory != NULL, __ATOMIC_RELAXED);
    __libc_free(memory);
}

/* ---- system calls ---- */

/* The call itself, from an address of its own: `through_end` is the instruction after it. */
long through(long number, long a, long b, long c, long d, long e, long f);
extern const char through_end[];
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define REGISTER(u, n)                                                                             \
    ((u)->uc_mcontext.gregs[(int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9}[n]])
#define RESULT(u) ((u)->uc_mcontext.gregs[REG_RAX])
__asm__(".text\n.globl through\n.globl through_end\nthrough:\n"
        "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\nmov %r8, %r10\n"
        "mov %r9, %r8\nmov 8(%rsp), %r9\nsyscall\nthrough_end:\nret\n");
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define REGISTER(u, n) ((long)(u)->uc_mcontext.regs[n])
#define RESULT(u) ((u)->uc_mcontext.regs[0])
__asm__(".text\n.globl through\n.globl through_end\nthrough:\n"
        "mov x8, x0\nmov x0, x1\nmov x1, x2\nmov x2, x3\nmov x3, x4\nmov x4, x5\nmov x5, x6\n"
        "svc 0\nthrough_end:\nret\n");
#endif

/* What is said on stderr is how a failure shows: it is let through uncounted. */
static void caught(int signal_number, siginfo_t *info, void *context) {
    ucontext_t *u = context;
    long number = info->si_syscall, result = 0;
    int k = -1;
    (void)signal_number;
    for (int i = 0; i < CALLS; i++) {
        k = calls[i].number == number ? kind_of(calls[i].kind) : k;
    }
    if (fails(kind_of("kill"))) {
        kill(getpid(), SIGKILL);
    }
    if (fails(kind_of("interrupt"))) {
        kill(getpid(), SIGINT);
    }
    if (number == SYS_fsync) {
        struct stat what;
        through(SYS_fstat, REGISTER(u, 0), (long)&what, 0, 0, 0, 0);
        k = S_ISDIR(what.st_mode) ? kind_of("settle") : k;
    }
    int says = k == kind_of("write") && REGISTER(u, 0) == STDERR_FILENO;
    int fail = !says && fails(k), is_close = number == SYS_close;
    if (number == SYS_fsync) { /* nothing is to survive this machine */
        result = 0;
    } else if (!fail || is_close) { /* a close that fails has closed */
        result = through(number, REGISTER(u, 0), REGISTER(u, 1), REGISTER(u, 2), REGISTER(u, 3),
                         REGISTER(u, 4), REGISTER(u, 5));
    }
    RESULT(u) = fail ? -kinds[k].code : result;
}

static int filter(void) {
    struct sock_filter program[8 + 2 * CALLS];
    uintptr_t own = (uintptr_t)through_end;
    unsigned n = 0;
    program[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                                offsetof(struct seccomp_data, instruction_pointer));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)own, 0, 1);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++) {
        program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                                                    (uint32_t)calls[i].number, 0, 1);
        program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    }
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog all = {(unsigned short)n, program};
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) == 0;
}

/* FAULT=keep: the folder that selftest works in is not removed. */
int unlink(const char *path) {
    return kept ? 0 : unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path) {
    return kept ? 0 : unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

/* ---- from main to its end ---- */

static int (*program_main)(int, char **, char **);

static void leave(void) {
    char text[32 * (KINDS + 1)];
    int n = 0;
    armed = 0;
    for (int k = 0; k < KINDS; k++) {
        n += sprintf(text + n, "%s %ld\n", kinds[k].name, counts[k]);
    }
    n += sprintf(text + n, "live %ld\n", live);
    int log = open(getenv("FAULT_LOG"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (write(log, text, (size_t)n) != n) {
        abort();
    }
}

static int disturbed_main(int argc, char **argv, char **environment) {
    const char *fault = getenv("FAULT");
    char name[16];
    if (fault != NULL && sscanf(fault, "%15[a-z]:%ld", name, &at) == 2) {
        kind = kind_of(name);
        onwards = fault[strlen(fault) - 1] == '+';
    }
    kept = fault != NULL && strcmp(fault, "keep") == 0;
    if (getenv("FAULT_LOG") != NULL) {
        atexit(leave);
    }
    setenv("OMP_WAIT_POLICY", "passive", 0); /* else the program starts itself once more */
    signal(SIGINT, SIG_DFL); /* a shell lets what runs in the background ignore it */
    if (!filter()) {
        fprintf(stderr, "faults: this system has no seccomp\n");
        abort();
    }
    armed = 1;
    return program_main(argc, argv, environment);
}

int __libc_start_main(int (*start)(int, char **, char **), int argc, char **argv,
                      void (*init)(void), void (*fini)(void), void (*rtld_fini)(void),
                      void *stack_end) {
    int (*next)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
                void (*)(void), void *);
    extern void *dlsym(void *handle, const char *symbol);
    void *found = dlsym((void *)-1L /* RTLD_NEXT */, "__libc_start_main");
    memcpy(&next, &found, sizeof next);
    program_main = start;
    return next(disturbed_main, argc, argv, init, fini, rtld_fini, stack_end);
}
