/*
 * mmap: what a C program does with a file through mmap(2), checked byte by byte.
 *
 *	mmap shared FILE MIB     two processes store a pattern all over one MAP_SHARED mapping, in random order and into
 *	                         the same pages; then every word is compared through a mapping and through read(2)
 *	mmap coherent FILE N     N rounds in which one process stores or writes and the other loads and reads
 *	mmap private FILE        stores in a MAP_PRIVATE mapping stay in it; waits for a line on standard input in between
 *
 * Exit status 0 if every byte was right.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

/* The word that belongs at position i: splitmix64. */
static uint64_t
pattern(uint64_t i)
{
	uint64_t z = (i + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* A permutation of the numbers below 2^bits, another one for every key. */
static uint64_t
shuffled(uint64_t i, int bits, uint64_t key)
{
	uint64_t mask = (1ULL << bits) - 1;

	for (int round = 0; round < 3; round++) {
		i = (i * (pattern(key + round) | 1) + key) & mask;
		i ^= i >> (bits / 2 + 1);
	}
	return i;
}

static void *
map(const char *file, size_t size, int flags)
{
	int fd = open(file, O_RDWR);
	void *p;

	if (fd < 0)
		err(2, "open %s", file);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED)
		err(2, "mmap %s", file);
	close(fd);
	return p;
}

static void
create(const char *file, size_t size)
{
	int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0644);

	if (fd < 0)
		err(2, "create %s", file);
	if (ftruncate(fd, size) < 0)
		err(2, "ftruncate %s", file);
	if (close(fd) < 0)
		err(2, "close %s", file);
}

static int
compare(const char *how, const uint64_t *words, uint64_t first, uint64_t n)
{
	int bad = 0;

	for (uint64_t i = 0; i < n; i++) {
		if (words[i] == pattern(first + i))
			continue;
		if (bad++ < 5)
			fprintf(stderr, "%s: word %llu is %016llx, want %016llx\n", how, (unsigned long long)(first + i),
			    (unsigned long long)words[i], (unsigned long long)pattern(first + i));
	}
	return bad;
}

/* Which of the two processes stores word i. */
static int
owner(uint64_t i)
{
	return pattern(~i) & 1;
}

static int
shared(const char *file, size_t mib)
{
	size_t size = mib << 20;
	uint64_t pages = size / PAGE;
	int bits = 1, status, bad = 0;
	static uint64_t buf[64 * WORDS];

	while (1ULL << bits < pages)
		bits++;
	create(file, size);
	for (int who = 0; who < 2; who++) {
		pid_t pid = fork();
		if (pid < 0)
			err(2, "fork");
		if (pid != 0)
			continue;
		uint64_t *words = map(file, size, MAP_SHARED);
		/* One of the two asks for single pages, the other lets the kernel read around them. */
		if (who == 0 && madvise(words, size, MADV_RANDOM) < 0)
			err(2, "madvise");
		for (uint64_t k = 0; k < 1ULL << bits; k++) {
			uint64_t page = shuffled(k, bits, 77 + who);
			if (page >= pages)
				continue;
			for (uint64_t i = page * WORDS; i < (page + 1) * WORDS; i++)
				if (owner(i) == who)
					words[i] = pattern(i);
		}
		_exit(0);
	}
	for (int who = 0; who < 2; who++)
		if (wait(&status) < 0 || status != 0)
			errx(2, "a writer ended with status %#x", status);

	uint64_t *words = map(file, size, MAP_SHARED);
	bad += compare("mapping", words, 0, pages * WORDS);
	if (msync(words, size, MS_SYNC) < 0)
		err(2, "msync");
	munmap(words, size);

	int fd = open(file, O_RDONLY);
	if (fd < 0)
		err(2, "open %s", file);
	for (uint64_t page = 0; page < pages; page += 64) {
		ssize_t n = pread(fd, buf, sizeof buf, page * PAGE);
		if (n < 0 || n % PAGE != 0)
			err(2, "pread at page %llu: %zd", (unsigned long long)page, n);
		bad += compare("read", buf, page * WORDS, n / 8);
	}
	close(fd);
	return bad;
}

static void
pass(int fd)
{
	if (write(fd, "", 1) != 1)
		err(2, "write to the other process");
}

static void
await(int fd)
{
	char c;

	if (read(fd, &c, 1) != 1)
		errx(2, "the other process has ended");
}

/* The bytes of round k: where, how many, and which. */
static void
plan(uint64_t k, size_t size, size_t *off, size_t *n, unsigned char *bytes)
{
	*off = pattern(k * 3) % size;
	*n = 1 + pattern(k * 3 + 1) % 9000;
	if (*n > size - *off)
		*n = size - *off;
	for (size_t i = 0; i < *n; i++)
		bytes[i] = pattern(k * 3 + 2 + i / 8) >> i % 8 * 8;
}

static int
coherent(const char *file, uint64_t rounds)
{
	size_t size = 4 << 20, off, n;
	int a[2], b[2], status;
	static unsigned char want[9000], got[9000];

	create(file, size);
	if (pipe(a) < 0 || pipe(b) < 0)
		err(2, "pipe");
	pid_t pid = fork();
	if (pid < 0)
		err(2, "fork");
	int fd = open(file, O_RDWR);
	if (fd < 0)
		err(2, "open %s", file);
	unsigned char *p = map(file, size, MAP_SHARED);
	int me = pid == 0, in = me ? a[0] : b[0], out = me ? b[1] : a[1];

	close(me ? a[1] : b[1]); /* so that the end of one ends the other */
	for (uint64_t k = 0; k < rounds; k++) {
		plan(k, size, &off, &n, want);
		if ((int)(k & 1) == me) { /* mine: store in even pairs of rounds, write in odd ones */
			if (k >> 1 & 1)
				memcpy(p + off, want, n);
			else if (pwrite(fd, want, n, off) != (ssize_t)n)
				err(2, "pwrite");
			pass(out);
		} else {
			await(in);
			if (memcmp(p + off, want, n) != 0)
				errx(1, "round %llu: the mapping does not show %zu bytes at %zu %s", (unsigned long long)k, n, off,
				    k >> 1 & 1 ? "stored" : "written");
			if (pread(fd, got, n, off) != (ssize_t)n)
				err(2, "pread");
			if (memcmp(got, want, n) != 0)
				errx(1, "round %llu: read does not show %zu bytes at %zu %s", (unsigned long long)k, n, off,
				    k >> 1 & 1 ? "stored" : "written");
		}
	}
	if (pid == 0)
		_exit(0);
	if (wait(&status) < 0 || status != 0)
		errx(1, "the other process ended with status %#x", status);
	return 0;
}

static void
ask(const char *what)
{
	char line[80];

	printf("%s\n", what);
	fflush(stdout);
	if (fgets(line, sizeof line, stdin) == NULL)
		errx(2, "no answer");
}

static int
private(const char *file)
{
	uint64_t pages = 512, i, word;
	size_t size = pages * PAGE;

	create(file, size);
	int fd = open(file, O_RDWR);
	if (fd < 0)
		err(2, "open %s", file);
	for (i = 0; i < pages * WORDS; i++) {
		word = pattern(i);
		if (pwrite(fd, &word, 8, i * 8) != 8)
			err(2, "pwrite");
	}
	uint64_t *mine = map(file, size, MAP_PRIVATE);
	for (i = 0; i < pages; i += 2) /* every other page becomes a copy of our own */
		mine[i * WORDS] = ~i;
	ask("stored");
	for (i = 0; i < pages; i++) {
		if (mine[i * WORDS] != (i % 2 == 0 ? ~i : pattern(i * WORDS)))
			errx(1, "page %llu of the private mapping has changed", (unsigned long long)i);
		if (compare("private page", mine + i * WORDS + 1, i * WORDS + 1, WORDS - 1))
			errx(1, "page %llu of the private mapping has changed", (unsigned long long)i);
		if (pread(fd, &word, 8, i * PAGE) != 8 || word != pattern(i * WORDS))
			errx(1, "page %llu of the file shows a private store", (unsigned long long)i);
		word = i;
		if (pwrite(fd, &word, 8, i * PAGE) != 8)
			err(2, "pwrite");
	}
	ask("written");
	for (i = 0; i < pages; i += 2)
		if (mine[i * WORDS] != ~i)
			errx(1, "page %llu of the private mapping shows a write to the file", (unsigned long long)i);
	for (i = 1; i < pages; i += 2)
		if (mine[i * WORDS] != i)
			errx(1, "untouched page %llu of the private mapping does not show the file", (unsigned long long)i);
	return 0;
}

int
main(int argc, char *argv[])
{
	if (argc == 4 && strcmp(argv[1], "shared") == 0)
		return shared(argv[2], strtoul(argv[3], NULL, 10)) != 0;
	if (argc == 4 && strcmp(argv[1], "coherent") == 0)
		return coherent(argv[2], strtoull(argv[3], NULL, 10)) != 0;
	if (argc == 3 && strcmp(argv[1], "private") == 0)
		return private(argv[2]) != 0;
	fprintf(stderr, "usage: mmap shared FILE MIB | coherent FILE ROUNDS | private FILE\n");
	return 2;
}
