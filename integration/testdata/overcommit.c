// A program that has simulated processes of its own: it fills their memory with patterns, through write(2) and through
// mappings, changes some of it and reads all of it back, over and over. Arguments: the .proc directory, the first number of
// its processes, how many, bytes each, rounds. It prints what went wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define BASE 0x10000000UL

static uint64_t state;
static uint64_t next(void) {
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void fill(uint64_t *page, uint64_t process, uint64_t index, uint64_t version) {
	for (int i = 0; i < PAGE / 8; i++)
		page[i] = process << 48 ^ index << 24 ^ version << 12 ^ i;
}

static void die(const char *what, int process) {
	printf("process %d: %s: %s\n", process, what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv) {
	const char *proc = argv[1];
	int first = atoi(argv[2]), count = atoi(argv[3]), rounds = atoi(argv[5]);
	uint64_t size = strtoull(argv[4], NULL, 0), pages = size / PAGE;
	int *mem = calloc(count, sizeof *mem);
	char **map = calloc(count, sizeof *map), name[4096], line[256];
	uint32_t *version = calloc(count * pages, sizeof *version);
	state = 88172645463325252ULL + first;
	for (int p = 0; p < count; p++) {
		snprintf(name, sizeof name, "%s/o%d", proc, first + p);
		if (mkdir(name, 0755))
			die("mkdir", first + p);
		strcat(name, "/ctl");
		int ctl = open(name, O_RDWR);
		int n = snprintf(line, sizeof line, "VirtualAlloc 0x%lx 0x%lx MEM_RESERVE|MEM_COMMIT PAGE_READWRITE\n", BASE, size);
		if (ctl < 0 || write(ctl, line, n) != n)
			die("VirtualAlloc", first + p);
		close(ctl);
		snprintf(name, sizeof name, "%s/o%d/mem", proc, first + p);
		if ((mem[p] = open(name, O_RDWR)) < 0)
			die("open of mem", first + p);
		map[p] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mem[p], BASE);
		if (map[p] == MAP_FAILED)
			die("mmap", first + p);
	}
	uint64_t want[PAGE / 8], got[PAGE / 8];
	for (int round = 1; round <= rounds; round++) {
		for (int p = 0; p < count; p++)
			for (uint64_t i = 0; i < pages; i++) {
				if (round > 1 && next() % 4)
					continue;
				version[p * pages + i] = round;
				fill(want, first + p, i, round);
				if (next() % 2)
					memcpy(map[p] + i * PAGE, want, PAGE);
				else if (pwrite(mem[p], want, PAGE, BASE + i * PAGE) != PAGE)
					die("write", first + p);
			}
		for (int p = 0; p < count; p++)
			for (uint64_t i = 0; i < pages; i++) {
				fill(want, first + p, i, version[p * pages + i]);
				if (next() % 2)
					memcpy(got, map[p] + i * PAGE, PAGE);
				else if (pread(mem[p], got, PAGE, BASE + i * PAGE) != PAGE)
					die("read", first + p);
				if (memcmp(want, got, PAGE)) {
					printf("process %d page %lu round %d: wrong bytes\n", first + p, i, round);
					exit(1);
				}
			}
	}
	for (int p = 0; p < count; p++) {
		munmap(map[p], size);
		close(mem[p]);
		snprintf(name, sizeof name, "%s/o%d", proc, first + p);
		if (rmdir(name))
			die("rmdir", first + p);
	}
	return 0;
}
