/* A server that forgets to close its sessions: some KiB a second, given in its argument, among much more that is released. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct session { struct session *next; char token[56]; };

static struct session *sessions;
static void *cached[256];
static unsigned state = 1;

static unsigned some(unsigned below) { state = state * 1103515245 + 12345; return (state >> 8) % below; }

__attribute__((noinline)) void open_session(void)
{
	struct session *session = malloc(sizeof *session);
	memset(session->token, 's', sizeof session->token);
	session->next = sessions;
	sessions = session;
}

__attribute__((noinline)) void render_page(void)
{
	size_t length = 32 + some(2000);
	char *page = malloc(length);
	memset(page, (int)some(256), length);
	free(page);
}

__attribute__((noinline)) void parse_request(void)
{
	char *headers[20];
	for (int i = 0; i < 20; i++)
		memset(headers[i] = malloc(16 + some(200)), i, 16);
	for (int i = 0; i < 20; i++)
		free(headers[i]);
}

__attribute__((noinline)) void refresh_cache(void)
{
	unsigned at = some(256);
	free(cached[at]);
	memset(cached[at] = malloc(1000 + some(4000)), (int)some(256), 1000);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **words)
{
	double rate = (count > 1 ? atof(words[1]) : 17) * 1024 / sizeof(struct session), begun = now(), opened = 0;
	for (;;) {
		for (int i = 0; i < 50; i++)
			render_page();
		parse_request();
		refresh_cache();
		for (; opened < (now() - begun) * rate; opened++)
			open_session();
		usleep(2000);
	}
}
