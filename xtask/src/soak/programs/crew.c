/*
 * Threads that get in each other's way in every manner that several processors have to get right:
 * atomics, a mutex with a condition, pipes that wake others, sleeps, and pages that are unmapped
 * while others run, which takes interprocessor interrupts. What must hold is checked; how often a
 * counter without a lock lost an update is printed, so that a replay that takes turns at another
 * place shows other figures.
 *
 *   crew THREADS ROUNDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static long rounds, threads;
static volatile long racy;
static _Atomic long exact;
static long locked, turn;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int ring[32][2];

static void die(const char *why)
{
	puts(why);
	exit(1);
}

static void remap(long me, long round)
{
	size_t bytes = 4096 * (1 + (me + round) % 5);
	char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED)
		die("no memory");
	memset(pages, (int)me, bytes);
	if (mprotect(pages, bytes, PROT_READ) || pages[bytes - 1] != (char)me || munmap(pages, bytes))
		die("a page is not what it was");
}

static void *work(void *argument)
{
	long me = (long)argument;

	for (long round = 0; round < rounds; round++) {
		for (int i = 0; i < 500; i++) {
			racy = racy + 1;
			exact++;
		}
		pthread_mutex_lock(&lock);
		locked++;
		if (round % 8 == 0) {
			while (turn % threads != me)
				pthread_cond_wait(&moved, &lock);
			turn++;
			pthread_cond_broadcast(&moved);
		}
		pthread_mutex_unlock(&lock);
		if (round % 4 == 1) {
			long token = 0;

			if (write(ring[(me + 1) % threads][1], &round, sizeof round) != sizeof round ||
			    read(ring[me][0], &token, sizeof token) != sizeof token || token != round)
				die("a pipe brings something else");
		}
		remap(me, round);
		if (round % 16 == me % 16)
			nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
	}
	return NULL;
}

int main(int count, char **words)
{
	pthread_t all[32];

	threads = count > 1 ? atol(words[1]) : 4;
	rounds = count > 2 ? atol(words[2]) : 64;
	if (threads < 1 || threads > 32)
		die("1 to 32 threads");
	for (long i = 0; i < threads; i++)
		if (pipe(ring[i]))
			die("no pipe");
	for (long i = 0; i < threads; i++)
		if (pthread_create(&all[i], NULL, work, (void *)i))
			die("no thread");
	for (long i = 0; i < threads; i++)
		pthread_join(all[i], NULL);
	if (locked != threads * rounds || exact != locked * 500)
		die("additions that cannot be lost were lost");
	printf("the crew is through; %ld of %ld additions without a lock are there\n", racy, exact);
	return 0;
}
