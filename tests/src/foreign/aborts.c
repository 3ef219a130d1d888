/* Calls abort(3) in a function of its own, at some depth. Built as distributions build: optimised, without frame pointers. */

#include <stdlib.h>

__attribute__((noinline)) int gives_up(int depth) {
    volatile char room[100];
    room[depth] = 1;
    if (room[depth])
        abort();
    return room[0];
}

__attribute__((noinline)) int works_for_a_while(int depth) {
    volatile int left = gives_up(depth);
    return left + 1;
}

int main(int count, char **words) {
    (void)words;
    return works_for_a_while(count) + 1;
}
