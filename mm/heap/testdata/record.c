// Records what a program asks of malloc, as a trace that replay_test.go reads:
//
//	gcc -O2 -shared -fPIC -o record.so record.c
//	TRACE=trace.txt LD_PRELOAD=$PWD/record.so PROGRAM...
//	gzip -9 trace.txt
//
// A line is "a SIZE USABLE" (malloc, calloc, memalign: the block gets the next number from 0), "r NUMBER SIZE USABLE"
// (realloc), "f NUMBER" (free), or "s BYTES", what glibc has from the system, every 32 lines. USABLE is
// malloc_usable_size. Only the process that TRACE was first given to is recorded, not its children.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t), __libc_free(void *);

enum { SLOTS = 1 << 20 };
static struct slot { void *p; unsigned id; } table[SLOTS]; // open addressing; id + 1, 0 once freed
static unsigned next, lines;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static int fd = -1, off;
static char buffer[1 << 16];

static void flush(void)
{
	for (int n, at = 0; at < off; at += n)
		if ((n = write(fd, buffer + at, off - at)) < 0)
			break;
	off = 0;
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("TRACE");
	if (path)
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	unsetenv("TRACE");
	unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void stop(void) { flush(); fd = -1; }

static struct slot *find(void *p)
{
	size_t i = ((size_t)p >> 4) * 0x9E3779B97F4A7C15u >> 44;
	while (table[i % SLOTS].p && table[i % SLOTS].p != p)
		i++;
	return &table[i % SLOTS];
}

static void line(const char *format, size_t a, size_t b, size_t c)
{
	if (off > (int)sizeof buffer - 100)
		flush();
	off += snprintf(buffer + off, 100, format, a, b, c);
	if (++lines % 32 == 0) {
		struct mallinfo2 m = mallinfo2();
		off += snprintf(buffer + off, 100, "s %zu\n", m.arena + m.hblkhd);
	}
}

static void *added(void *p, size_t size)
{
	int saved = errno;
	if (p && fd >= 0) {
		pthread_mutex_lock(&mu);
		struct slot *s = find(p);
		s->p = p;
		s->id = ++next;
		line("a %zu %zu\n", size, malloc_usable_size(p), 0);
		pthread_mutex_unlock(&mu);
	}
	errno = saved;
	return p;
}

void *malloc(size_t n) { return added(__libc_malloc(n), n); }
void *calloc(size_t n, size_t size) { return added(__libc_calloc(n, size), n * size); }
void *memalign(size_t align, size_t n) { return added(__libc_memalign(align, n), n); }
void *aligned_alloc(size_t align, size_t n) { return memalign(align, n); }
int posix_memalign(void **p, size_t align, size_t n) { return (*p = memalign(align, n)) ? 0 : ENOMEM; }

void free(void *p)
{
	if (p && fd >= 0) {
		pthread_mutex_lock(&mu);
		struct slot *s = find(p);
		if (s->p && s->id) {
			line("f %zu\n", s->id - 1, 0, 0);
			s->id = 0;
		}
		pthread_mutex_unlock(&mu);
	}
	__libc_free(p);
}

void *realloc(void *p, size_t n)
{
	if (!p)
		return malloc(n);
	if (!n || fd < 0) {
		if (!n)
			free(p);
		return n ? __libc_realloc(p, n) : NULL;
	}
	pthread_mutex_lock(&mu);
	void *q = __libc_realloc(p, n);
	struct slot *s = find(p);
	unsigned id = s->p ? s->id : 0;
	if (q && id) {
		s->id = 0;
		s = find(q);
		s->p = q;
		s->id = id;
		line("r %zu %zu %zu\n", id - 1, n, malloc_usable_size(q));
	}
	pthread_mutex_unlock(&mu);
	return q;
}
