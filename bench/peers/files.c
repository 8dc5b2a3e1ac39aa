/* Files: the least that a store takes which keeps a file for each list, measured instead of argued about.
 *
 *   files [-durable GROUP] set|get SOURCE STORE
 *
 * SOURCE is a store of tagfs.  `set` puts each of its lists into STORE as it is stored there, in the order of their
 * paths, so that a reader sees none or all of it: a directory, a file written beside, a rename.  `get` reads each.
 * With -durable, GROUP lists at a time wait for the disk together, as `tagfs import` has them: what the group before
 * has renamed and what this one has written is one syncfs(2).  What it cost goes to standard output as JSON.
 *
 * Owns: the system calls that such a store cannot do without.
 * Does not know: tags, codecs, who else writes, links on the way, what a list supersedes, an interpreter.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BASE "imagerepository"
#define VERSION ".storage-version"
#define STAGE ".stage"

struct list {
	char *directory; /* below BASE */
	char *path;
};

struct lists {
	struct list *every;
	size_t count, room;
};

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "files: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *allocated(void *memory)
{
	if (memory == NULL)
		die("no memory");
	return memory;
}

static int done(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static char *joined(const char *above, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s", above, name) < 0)
		die(name);
	return path;
}

static DIR *opened(int root, const char *path)
{
	return allocated(fdopendir(done(openat(root, path, O_RDONLY | O_DIRECTORY), path)));
}

static const char *next_name(DIR *directory)
{
	const struct dirent *entry;

	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] != '.')
			return entry->d_name;
	return NULL;
}

static void note(struct lists *lists, int root, char *directory)
{
	DIR *inner = opened(root, directory);
	const char *name = next_name(inner);

	if (name != NULL) {
		if (lists->count == lists->room) {
			lists->room = lists->room ? 2 * lists->room : 1024;
			lists->every = allocated(realloc(lists->every, lists->room * sizeof *lists->every));
		}
		lists->every[lists->count++] = (struct list){directory, joined(directory, name)};
	}
	closedir(inner);
}

static int by_path(const void *one, const void *other)
{
	return strcmp(((const struct list *)one)->path, ((const struct list *)other)->path);
}

static struct lists lists_of(int root)
{
	struct lists lists = {0};
	DIR *base = opened(root, BASE);
	const char *name;

	while ((name = next_name(base)) != NULL) {
		char *above = joined(BASE, name);
		DIR *namespace = opened(root, above);
		while ((name = next_name(namespace)) != NULL)
			note(&lists, root, joined(above, name));
		closedir(namespace);
		free(above);
	}
	closedir(base);
	if (lists.count > 0)
		qsort(lists.every, lists.count, sizeof *lists.every, by_path);
	return lists;
}

/* The size of a file, all of which is then in `*bytes`, where there is `*room`. */
static size_t content(int root, const char *path, char **bytes, size_t *room)
{
	int file = done(openat(root, path, O_RDONLY | O_CLOEXEC), path);
	struct stat status;
	ssize_t size;

	done(fstat(file, &status), path);
	if ((size_t)status.st_size > *room) {
		*room = 2 * (size_t)status.st_size;
		*bytes = allocated(realloc(*bytes, *room));
	}
	size = read(file, *bytes, (size_t)status.st_size);
	if (size != status.st_size)
		die(path);
	close(file);
	return (size_t)size;
}

static void make_directory(int store, char *path)
{
	if (mkdirat(store, path, 0700) == 0)
		return;
	if (errno != ENOENT)
		die(path);
	char *slash = strrchr(path, '/');
	*slash = '\0';
	done(mkdirat(store, path, 0700), path);
	*slash = '/';
	done(mkdirat(store, path, 0700), path);
}

/* The list of this number, written beside. */
static void stage(int directory, size_t number, const char *bytes, size_t size)
{
	char name[24];
	int file;

	snprintf(name, sizeof name, "%zu", number);
	file = done(openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), name);
	if (write(file, bytes, size) != (ssize_t)size)
		die(name);
	close(file);
}

static void publish(int directory, size_t number, int store, const char *path)
{
	char name[24];

	snprintf(name, sizeof name, "%zu", number);
	done(renameat(directory, name, store, path), path);
}

/* `group`: how many wait for the disk together; 0: none waits. */
static void set(const struct lists *lists, int source, int store, size_t group)
{
	char *bytes = NULL;
	size_t room = 0, each = group ? group : 1;
	int version, directory;

	version = done(openat(store, VERSION, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), VERSION);
	if (write(version, "3\n", 2) != 2)
		die(VERSION);
	close(version);
	done(mkdirat(store, BASE, 0700), BASE);
	done(mkdirat(store, STAGE, 0700), STAGE);
	directory = done(openat(store, STAGE, O_RDONLY | O_DIRECTORY | O_CLOEXEC), STAGE);
	for (size_t first = 0; first < lists->count; first += each) {
		size_t end = first + each < lists->count ? first + each : lists->count;
		for (size_t i = first; i < end; i++) {
			size_t size = content(source, lists->every[i].path, &bytes, &room);
			make_directory(store, lists->every[i].directory);
			stage(directory, i, bytes, size);
		}
		if (group)
			done(syncfs(store), "syncfs");
		for (size_t i = first; i < end; i++)
			publish(directory, i, store, lists->every[i].path);
	}
	if (group)
		done(syncfs(store), "syncfs");
	close(directory);
	done(unlinkat(store, STAGE, AT_REMOVEDIR), STAGE);
	free(bytes);
}

static void get(const struct lists *lists, int store)
{
	char *bytes = NULL;
	size_t room = 0;

	for (size_t i = 0; i < lists->count; i++)
		content(store, lists->every[i].path, &bytes, &room);
	free(bytes);
}

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The number after a name in one of the kernel's files about this process, or -1. */
static long field(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	char line[256];
	long number = -1;

	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, name, strlen(name)) == 0)
			number = strtol(line + strlen(name), NULL, 10);
	if (file != NULL)
		fclose(file);
	return number;
}

int main(int count, char **words)
{
	bool is_durable = count == 6 && strcmp(words[1], "-durable") == 0;
	size_t group = is_durable ? strtoul(words[2], NULL, 10) : 0;
	char **rest = words + (is_durable ? 3 : 1);

	if ((count != 4 && !is_durable) || (is_durable && group == 0) ||
	    (strcmp(rest[0], "set") != 0 && strcmp(rest[0], "get") != 0)) {
		fputs("usage: files [-durable GROUP] set|get SOURCE STORE\n", stderr);
		return 2;
	}
	int source = done(open(rest[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), rest[1]);
	struct lists lists = lists_of(source);
	double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
	int store = done(open(rest[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC), rest[2]);
	if (strcmp(rest[0], "set") == 0)
		set(&lists, source, store, group);
	else
		get(&lists, store);
	close(store);
	printf("{\"cpu_s\": %f, \"wall_s\": %f, \"peak_kib\": %ld, \"written\": %ld}\n",
	       seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, seconds(CLOCK_MONOTONIC) - wall,
	       field("/proc/self/status", "VmHWM:"), field("/proc/self/io", "write_bytes:"));
	return 0;
}
