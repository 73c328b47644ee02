// A busy user of a process whose memory has views of a file: it stores into the file through a mapping of its own, into the
// process's memory across the border of a view, and changes the address space, while more reads of the process's private memory
// are under way than the host kernel lets through at once. It takes the file, the process's folder, the address where a private
// allocation and a view of the file of the same size meet, that size, for how many milliseconds, and the numbers of what to do.
// It prints how often each of these was done.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, DEPTH = 96 };

static volatile int stop;
static char *file;
static int mem, direct;
static unsigned long border, size;
static const char *ctl;
static unsigned long stores, dirtied, reads, asked, changes, said;

static void die(const char *what) {
	perror(what);
	_exit(1);
}

static void *dirty(void *unused) {
	for (; !stop; dirtied++)
		for (unsigned long i = 0; i < size; i += PAGE)
			file[i + 8]++;
	return unused;
}

static void *store(void *unused) {
	char *b = malloc(size);
	memset(b, 's', size);
	for (; !stop; stores++) {
		ssize_t n = pwrite(mem, b, size, border - size / 2);
		if (n < 0 && errno != EBUSY)
			die("pwrite");
	}
	return unused;
}

// say writes one line to the process's ctl; what it is answered does not matter.
static void say(int fd, const char *line) {
	if (write(fd, line, strlen(line)) < 0 && errno == EIO)
		die(line);
}

static void *change(void *unused) {
	int fd = open(ctl, O_RDWR);
	if (fd < 0)
		die(ctl);
	for (; !stop; changes++) {
		say(fd, "a = VirtualAlloc 0 0x10000 0x3000 4\n");
		say(fd, "VirtualFree $a 0 0x8000\n");
		say(fd, "w = MapViewOfFile $h FILE_MAP_WRITE 0 0 0\n");
		say(fd, "Write $w 41\n");
		say(fd, "UnmapViewOfFile $w\n");
		char line[100];
		sprintf(line, "VirtualProtect 0x%lx 0x%lx 4\n", border - PAGE, size);
		say(fd, line);
	}
	return unused;
}

// keep keeps DEPTH requests under way.
static void keep(struct iocb *all, unsigned long *count) {
	aio_context_t ctx = 0;
	struct iocb *list[DEPTH];
	struct io_event done[DEPTH];
	if (syscall(SYS_io_setup, DEPTH, &ctx))
		die("io_setup");
	for (int i = 0; i < DEPTH; i++)
		list[i] = &all[i];
	for (int idle = DEPTH; !stop;) {
		int n = syscall(SYS_io_submit, ctx, idle, list);
		if (n < 0 && errno != EAGAIN)
			die("io_submit");
		n = n < 0 ? 0 : n;
		memmove(list, list + n, (idle -= n) * sizeof *list);
		if ((n = syscall(SYS_io_getevents, ctx, 1, DEPTH, done, NULL)) < 0)
			die("io_getevents");
		for (int i = 0; i < n; i++)
			list[idle++] = (struct iocb *)done[i].obj;
		*count += n;
	}
}

// aio reads private pages, past the host's cache.
static void *aio(void *unused) {
	static struct iocb all[DEPTH];
	char *b;
	if (posix_memalign((void **)&b, PAGE, DEPTH * PAGE))
		die("memory");
	for (int i = 0; i < DEPTH; i++)
		all[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = direct, .aio_buf = (unsigned long)(b + i * PAGE),
			.aio_nbytes = PAGE, .aio_offset = border - size + i * PAGE % size};
	keep(all, &reads);
	return unused;
}

// lines says short lines that store into the view.
static void *lines(void *unused) {
	static struct iocb all[DEPTH];
	static char text[DEPTH][40];
	int fd = open(ctl, O_RDWR | O_DIRECT);
	if (fd < 0)
		die(ctl);
	for (int i = 0; i < DEPTH; i++) {
		int n = snprintf(text[i], sizeof text[i], "Write 0x%lx %02x\n", border + i * PAGE % size, i);
		all[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (unsigned long)text[i], .aio_nbytes = n};
	}
	keep(all, &said);
	return unused;
}

// ahead asks for private pages one by one, without waiting for any.
static void *ahead(void *unused) {
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mem, border - size);
	if (p == MAP_FAILED)
		die("mmap");
	for (; !stop; asked++)
		for (unsigned long i = 0; i < size; i += PAGE) {
			madvise(p + i, PAGE, MADV_WILLNEED);
			if (i % (8 * PAGE) == 0)
				p[i]++;
		}
	return unused;
}

int main(int argc, char **argv) {
	char name[256];
	border = strtoul(argv[3], NULL, 0);
	size = strtoul(argv[4], NULL, 0);
	int fd = open(argv[1], O_RDWR);
	snprintf(name, sizeof name, "%s/mem", argv[2]);
	mem = open(name, O_RDWR);
	direct = open(name, O_RDWR | O_DIRECT);
	if (fd < 0 || mem < 0 || direct < 0)
		die(name);
	if ((file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
		die("mmap");
	static char ctlName[256];
	snprintf(ctlName, sizeof ctlName, "%s/ctl", argv[2]);
	ctl = ctlName;
	void *(*roles[])(void *) = {dirty, store, change, aio, ahead, lines};
	enum { ROLES = sizeof roles / sizeof *roles };
	pthread_t threads[ROLES];
	for (int i = 0; i < ROLES; i++)
		if (strchr(argv[6], '0' + i))
			pthread_create(&threads[i], NULL, roles[i], NULL);
	long ms = atol(argv[5]);
	nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
	stop = 1;
	for (int i = 0; i < ROLES; i++)
		if (strchr(argv[6], '0' + i))
			pthread_join(threads[i], NULL);
	printf("%lu stores, %lu dirtied, %lu reads, %lu asked, %lu changes, %lu lines\n", stores, dirtied, reads, asked, changes, said);
	return 0;
}
