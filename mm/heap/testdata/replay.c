// Replays a trace of record.c on glibc's malloc, and prints what BenchmarkReplay reports of package heap:
//
//	gcc -O2 -o replay replay.c && zcat cc1.txt.gz | ./replay
//
// The trace is read before the clock starts; a pass touches no block, as the Go benchmark does not. What malloc has from
// the system is sampled every 32 calls, in a pass of its own.
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct call { char kind; unsigned id; size_t size; } *calls;
static size_t ncalls, nblocks;
static void **blocks;

static void read_trace(void)
{
	size_t room = 0, usable;
	char kind;
	while (scanf(" %c", &kind) == 1) {
		struct call c = {kind, 0, 0};
		int ok = 0;
		switch (kind) {
		case 's': ok = scanf("%zu", &usable) == 1; break;
		case 'a': ok = scanf("%zu %zu", &c.size, &usable) == 2; c.id = nblocks++; break;
		case 'r': ok = scanf("%u %zu %zu", &c.id, &c.size, &usable) == 3; break;
		case 'f': ok = scanf("%u", &c.id) == 1; break;
		}
		if (!ok) {
			fprintf(stderr, "replay: call %zu is not understood\n", ncalls);
			exit(1);
		}
		if (kind == 's')
			continue;
		if (ncalls == room)
			calls = realloc(calls, (room = room ? 2 * room : 1024) * sizeof *calls);
		calls[ncalls++] = c;
	}
	blocks = calloc(nblocks, sizeof *blocks);
}

// pass makes all calls; with sample it says what malloc had at most, less what it had before.
static size_t pass(int sample, double *fragmentation)
{
	struct mallinfo2 m = mallinfo2();
	size_t before = m.arena + m.hblkhd, idle = m.fordblks, peak = 0;
	for (size_t i = 0; i < ncalls; i++) {
		struct call *c = &calls[i];
		if (c->kind == 'f') {
			free(blocks[c->id]);
			blocks[c->id] = NULL;
		} else if (c->kind == 'r')
			blocks[c->id] = realloc(blocks[c->id], c->size);
		else
			blocks[c->id] = malloc(c->size);
		if (sample && i % 32 == 0) {
			m = mallinfo2();
			if (m.arena + m.hblkhd > before + peak) {
				peak = m.arena + m.hblkhd - before;
				*fragmentation = m.fordblks > idle ? (double)(m.fordblks - idle) / peak : 0;
			}
		}
	}
	for (size_t i = 0; i < nblocks; i++) {
		free(blocks[i]);
		blocks[i] = NULL;
	}
	return peak;
}

int main(void)
{
	read_trace();
	malloc_trim(0);
	double fragmentation = 0;
	size_t peak = pass(1, &fragmentation);
	enum { PASSES = 20 };
	struct timespec a, b; // of the processor's time, whatever else the machine does
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
	for (int i = 0; i < PASSES; i++)
		pass(0, NULL);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
	double ns = (b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec);
	printf("%zu calls: %.0f ns a call, %zu bytes from the system at most, %.0f %% of them free then\n", ncalls,
	       ns / PASSES / ncalls, peak, 100 * fragmentation);
}
