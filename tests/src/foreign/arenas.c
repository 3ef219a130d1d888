/* A server with arenas of its own, which it never gives back: some KiB a second, given in its argument, among mappings that it does give
   back and an allocator that is loud. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ARENA = 64 * 1024 };

static void *map(size_t length)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		abort();
	return memory;
}

__attribute__((noinline)) void grow_arena(void)
{
	memset(map(ARENA), 'a', ARENA);
}

/* Address space only. */
__attribute__((noinline)) void reserve(void)
{
	map(16 << 20);
}

__attribute__((noinline)) void scratch_buffer(void)
{
	char *buffer = map(1 << 20);
	memset(buffer, 's', 1 << 20);
	munmap(buffer, 1 << 20);
}

/* So large that the allocator asks for a mapping each time, and two of them that take turns. */
__attribute__((noinline)) void load_image(void)
{
	static char *image;
	free(image);
	memset(image = malloc(64 << 20), 'i', 4096);
}

__attribute__((noinline)) void render_page(void)
{
	char *page = malloc(3000);
	memset(page, 'p', 3000);
	free(page);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **words)
{
	double rate = (count > 1 ? atof(words[1]) : 17) * 1024 / ARENA, begun = now(), grown = 0;
	for (unsigned turn = 0;; turn++) {
		for (int i = 0; i < 50; i++)
			render_page();
		if (turn % 50 == 0)
			scratch_buffer();
		if (turn % 100 == 0)
			load_image();
		if (turn % 2000 == 0)
			reserve();
		for (; grown < (now() - begun) * rate; grown++)
			grow_arena();
		usleep(2000);
	}
}
