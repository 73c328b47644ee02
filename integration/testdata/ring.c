// ring FILE MESSAGES SLOTS: the producer of a ring buffer in a shared mapping. Page 0 holds how many messages were sent,
// page 1 how many were received, which somebody else writes; the slots follow, a number and its complement each.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void fail(const char *what) {
	perror(what);
	exit(1);
}

int main(int argc, char **argv) {
	if (argc != 4)
		return 2;
	uint64_t messages = strtoull(argv[2], 0, 0), slots = strtoull(argv[3], 0, 0);
	size_t size = 2 * PAGE + slots * 16;
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		fail("open");
	if (ftruncate(fd, (size + PAGE - 1) / PAGE * PAGE))
		fail("ftruncate");
	char *mem = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		fail("mmap");
	close(fd);
	puts("mapped");
	fflush(stdout);
	alarm(120);
	_Atomic uint64_t *sent = (void *)mem, *received = (void *)(mem + PAGE);
	uint64_t *ring = (void *)(mem + 2 * PAGE);
	for (uint64_t i = 0; i < messages; i++) {
		while (i - atomic_load(received) >= slots)
			usleep(50);
		ring[i % slots * 2] = i;
		ring[i % slots * 2 + 1] = ~i;
		atomic_store(sent, i + 1);
	}
	while (atomic_load(received) < messages)
		usleep(50);
	return 0;
}
