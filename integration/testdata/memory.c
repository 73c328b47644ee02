// A program that uses its own process: it calls through .proc/self/ctl, and reads, writes and maps .proc/self/mem. It prints
// what went wrong, and at the end "ready". It takes how many rounds of races to run, and "wait" if it is to wait to be killed.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int ctl, mem, bad;
static char reply[1 << 16];

#define check(ok) do { if (!(ok)) { printf("line %d: %s (errno %d, last reply %s)\n", __LINE__, #ok, errno, reply); bad = 1; } } while (0)

// call runs one line and says whether it went well.
static int call(const char *format, ...) {
	char line[4096];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	line[n++] = '\n';
	int ok = write(ctl, line, n) == n;
	n = read(ctl, reply, sizeof reply - 1);
	reply[n < 0 ? 0 : n] = 0;
	return ok;
}

static sigjmp_buf back;
static void onbus(int sig) { siglongjmp(back, sig); }

// faults says which signal a load or a store leads to, 0 if none.
static int faults(volatile char *at, int store) {
	int sig = sigsetjmp(back, 1);
	if (sig)
		return sig;
	if (store)
		*at = 'x';
	else
		(void)*at;
	return 0;
}

static long counter(const char *name) {
	FILE *f = fopen(".proc/vmstat", "r");
	char key[64];
	long n, found = -1;
	while (f && fscanf(f, "%63s %ld", key, &n) == 2)
		if (!strcmp(key, name))
			found = n;
	if (f)
		fclose(f);
	return found;
}

static char *map(void *want, size_t size, int prot, int flags, unsigned long at) {
	char *p = mmap(want, size, prot, flags, mem, at);
	if (p == MAP_FAILED) {
		printf("mmap of 0x%lx: errno %d\n", at, errno);
		exit(1);
	}
	return p;
}

static volatile int stop;
static char *raced;
static void *storer(void *unused) {
	for (unsigned i = 0; !stop; i++)
		for (int page = 0; page < 8; page++)
			((volatile unsigned *)(raced + page * 4096))[1] = i;
	return unused;
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IONBF, 0);
	const int rounds = atoi(argv[1]);
	signal(SIGBUS, onbus);
	signal(SIGSEGV, onbus);
	ctl = open(".proc/self/ctl", O_RDWR);
	mem = open(".proc/self/mem", O_RDWR);
	if (ctl < 0 || mem < 0) {
		printf("open: errno %d\n", errno);
		return 1;
	}
	const unsigned long at = 0x10000000;
	const int rw = PROT_READ | PROT_WRITE;
	check(lseek(mem, 0, SEEK_END) == 1L << 47);
	char *early = map(NULL, 4096, rw, MAP_SHARED, at);
	check(faults(early, 0) == SIGBUS); // nothing there yet
	check(call("r = VirtualAlloc 0x%lx 0x100000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", at));
	check(faults(early, 0) == 0);

	// At its own address, and at another one.
	char *p = map((void *)at, 0x100000, rw, MAP_SHARED | MAP_FIXED_NOREPLACE, at);
	char *q = map(NULL, 0x100000, rw, MAP_SHARED, at);
	check(p == (char *)at && q != p);
	strcpy(p + 5000, "stored");
	check(!strcmp(q + 5000, "stored"));
	check(call("Read 0x%lx 6", at + 5000) && strstr(reply, "73746f726564"));
	check(call("Write 0x%lx 4341", at + 5001));
	check(!strcmp(p + 5000, "sCAred") && !strcmp(q + 5000, "sCAred"));
	p[5000] = 'S';
	check(call("Read 0x%lx 3", at + 5000) && strstr(reply, "534341"));
	check(call("Write 0x%lx 61", at + 5002)); // in a page that is dirty in the mapping
	p[5003] = 'R';
	check(!strcmp(q + 5000, "SCaRed"));

	// read(2), write(2), seek.
	char buf[16] = "";
	check(pread(mem, buf, 6, at + 5000) == 6 && !strcmp(buf, "SCaRed"));
	check(pwrite(mem, "direct", 6, at + 5000) == 6 && !strcmp(p + 5000, "direct"));
	check(lseek(mem, at + 5002, SEEK_SET) == at + 5002 && read(mem, buf, 4) == 4 && !memcmp(buf, "rect", 4));
	check(pread(mem, buf, 8, at + 0x100000 - 4) == 4); // up to the end
	check(pread(mem, buf, 8, at + 0x100000) == -1 && errno == EFAULT);
	check(pwrite(mem, buf, 8, 0) == -1 && errno == EFAULT);
	check(pread(mem, buf, 8, -1UL >> 1) <= 0);
	check(lseek(mem, 0x100000, SEEK_DATA) == at);
	check(lseek(mem, at, SEEK_HOLE) == at + 0x100000);

	// A private mapping has its own copy of what it writes.
	char *own = map(NULL, 0x2000, rw, MAP_PRIVATE, at);
	own[0] = 'p';
	check(p[0] == 0 && own[0] == 'p');
	check(call("Read 0x%lx 1", at) && strstr(reply, "=00"));

	// Protections.
	p[0x3000] = 1;
	check(call("VirtualProtect 0x%lx 0x1000 PAGE_NOACCESS", at + 0x3000));
	check(faults(p + 0x3000, 0) == SIGBUS && faults(q + 0x3000, 1) == SIGBUS && faults(p + 0x4000, 1) == 0);
	check(pread(mem, buf, 1, at + 0x3000) == -1 && errno == EFAULT);
	check(call("VirtualProtect 0x%lx 0x1000 PAGE_READONLY", at + 0x3000));
	check(faults(p + 0x3000, 1) == SIGBUS);
	char *view = map(NULL, 0x1000, PROT_READ, MAP_SHARED, at + 0x3000);
	check(pread(mem, buf, 1, at + 0x3000) == 1 && buf[0] == 1);
	check(pwrite(mem, buf, 1, at + 0x3000) == -1 && errno == EFAULT);
	munmap(q, 0x100000);
	munmap(p + 0x3000, 0x1000);
	check(faults(view, 0) == 0 && *view == 1); // a mapping that cannot store
	check(call("VirtualProtect 0x%lx 0x1000 PAGE_READWRITE", at + 0x3000));
	q = map(NULL, 0x100000, rw, MAP_SHARED, at);
	check(faults(q + 0x3000, 1) == 0 && *view == 'x');

	// A guard page raises once.
	check(call("VirtualProtect 0x%lx 0x1000 PAGE_READWRITE|PAGE_GUARD", at + 0x5000));
	check(faults(q + 0x5000, 0) == SIGBUS && faults(q + 0x5000, 0) == 0);
	check(call("VirtualProtect 0x%lx 0x1000 PAGE_READWRITE|PAGE_GUARD", at + 0x5000));
	check(pread(mem, buf, 2, at + 0x5000 - 1) == 1); // not yet
	check(pread(mem, buf, 2, at + 0x5000) == -1 && errno == EFAULT);
	check(pread(mem, buf, 2, at + 0x5000) == 2);

	// A trimmed page comes back by a fault.
	memset(q + 0x8000, 7, 0x4000);
	check(call("Read 0x%lx 1", at + 0x8000));
	check(q[0x9000] == 7 && q[0xa000] == 7);
	check(call("EmptyWorkingSet"));
	check(call("QueryWorkingSetEx 0x%lx", at + 0x9000) && strstr(reply, "Valid=0"));
	long faulted = counter("transition_faults");
	check(q[0x9000] == 7);
	check(counter("transition_faults") == faulted + 1);
	check(call("QueryWorkingSetEx 0x%lx", at + 0x9000) && strstr(reply, "Valid=1"));

	// Memory that is gone is gone from mappings.
	q[0xc000] = 1;
	check(call("VirtualFree 0x%lx 0x1000 MEM_DECOMMIT", at + 0xc000));
	check(faults(q + 0xc000, 0) == SIGBUS);
	check(call("VirtualAlloc 0x%lx 0x1000 MEM_COMMIT PAGE_READWRITE", at + 0xc000));
	check(faults(q + 0xc000, 0) == 0 && q[0xc000] == 0);

	// A write watch sees stores through mappings.
	check(call("VirtualAlloc 0x20000000 0x10000 MEM_RESERVE|MEM_COMMIT|MEM_WRITE_WATCH PAGE_READWRITE"));
	char *w = map(NULL, 0x10000, rw, MAP_SHARED, 0x20000000);
	w[0x3000] = 1;
	check(call("GetWriteWatch WRITE_WATCH_FLAG_RESET 0x20000000 0x10000 16") && strstr(reply, "Count=1") && strstr(reply, "0x20003000"));
	check(call("GetWriteWatch 0 0x20000000 0x10000 16") && strstr(reply, "Count=0"));
	w[0x3000] = 2;
	check(call("GetWriteWatch 0 0x20000000 0x10000 16") && strstr(reply, "Count=1"));

	// Stores of a thread and calls of the process, to different bytes of the same pages.
	raced = map(NULL, 0x8000, rw, MAP_SHARED, at + 0x40000);
	pthread_t thread;
	pthread_create(&thread, NULL, storer, NULL);
	for (int i = 1; i <= rounds; i++) {
		unsigned long page = at + 0x40000 + i % 8 * 4096;
		check(call("Write 0x%lx %08x", page, __builtin_bswap32(i)));
		check(*(volatile unsigned *)(raced + i % 8 * 4096) == i);
	}
	stop = 1;
	pthread_join(thread, NULL);
	for (int i = rounds - 7; i <= rounds; i++) {
		unsigned *page = (unsigned *)(raced + i % 8 * 4096);
		check(page[0] == i && page[1] != 0);
		check(call("Read 0x%lx 8", at + 0x40000 + i % 8 * 4096));
		char want[32];
		sprintf(want, "%08x%08x", __builtin_bswap32(page[0]), __builtin_bswap32(page[1]));
		check(strstr(reply, want) != NULL);
	}
	check(call("VirtualFree 0x%lx 0 MEM_RELEASE", at));
	check(faults(q, 0) == SIGBUS && faults(p, 1) == SIGBUS);

	// Left behind, dirty, for whoever ends this program.
	check(call("VirtualAlloc 0x30000000 0x400000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE"));
	memset(map(NULL, 0x400000, rw, MAP_SHARED, 0x30000000), 9, 0x400000);
	puts(bad ? "failed" : "ready");
	while (argc > 2)
		pause();
	return bad;
}
