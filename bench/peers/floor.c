/* Floor: the least that a FUSE daemon takes to show lists, measured instead of argued about.
 *
 *   floor DIRECTORY POINT        as root
 *
 * It reads all of DIRECTORY into memory, mounts it on POINT, says so, and answers until POINT is unmounted, or until
 * SIGTERM or SIGINT, on which it unmounts.
 *
 * Owns: the requests and answers of a read-only mount of tagfs (tagfs/wire.py): the same flags, so that the kernel asks
 * the same questions; the quickest way found to wait for the next one.
 * Does not know: the disk once it serves, codecs, changes beneath, an interpreter, a library.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FOREVER 1000000000 /* seconds */
#define SPIN_NS 100000     /* how long it looks again and again before it sleeps, where there is a second processor */
#define LISTED (1 << 16)   /* bytes of a listing at once */
#define REPLY_PAGES 256    /* of one READ */
#define READ_AHEAD (1 << 20)
#define BACKGROUND 64
#define PROTOCOL_MINOR 31
#define BLOCK 4096

#define NEEDED (FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT | FUSE_DO_READDIRPLUS)
#define WANTED (NEEDED | FUSE_ASYNC_READ | FUSE_AUTO_INVAL_DATA | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES)

/* A directory or a file.  Its node id is its place in the table and one: the root is FUSE_ROOT_ID. */
struct node {
	char *path;
	const char *name;            /* the end of `path` */
	struct fuse_entry_out entry; /* what LOOKUP answers */
	size_t first, count;         /* of a directory: where its children stand in the table, sorted by name */
	char *bytes;                 /* of a file */
};

struct tree {
	struct node *nodes;
	size_t count, room;
};

struct request {
	const struct fuse_in_header *header;
	const void *body;
	size_t size; /* of the body */
};

static volatile sig_atomic_t is_told_to_end;
static const char *mounted_on; /* what is to be unmounted at the end, however that comes; or NULL */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list words;
	va_start(words, format);
	fputs("floor: ", stderr);
	vfprintf(stderr, format, words);
	fputc('\n', stderr);
	exit(1);
}

static void *allocated(void *memory)
{
	if (memory == NULL)
		die("no memory");
	return memory;
}

/* -- the tree, read once */

static void add(struct tree *tree, char *path)
{
	struct stat found;
	if (lstat(path, &found) != 0)
		die("%s: %s", path, strerror(errno));
	if (!S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode))
		die("%s is neither a file nor a directory", path);
	if (tree->count == tree->room) {
		tree->room = tree->room ? 2 * tree->room : 1024;
		tree->nodes = allocated(reallocarray(tree->nodes, tree->room, sizeof *tree->nodes));
	}
	struct node *node = &tree->nodes[tree->count++];
	const char *slash = strrchr(path, '/');
	bool is_file = S_ISREG(found.st_mode);
	*node = (struct node){
		.path = path,
		.name = slash ? slash + 1 : path,
		.entry = {
			.nodeid = tree->count,
			.entry_valid = FOREVER,
			.attr_valid = FOREVER,
			.attr = {
				.ino = tree->count,
				.size = is_file ? (uint64_t)found.st_size : 0,
				.blocks = is_file ? (uint64_t)found.st_blocks : 0,
				.atime = (uint64_t)found.st_mtime,
				.mtime = (uint64_t)found.st_mtime,
				.ctime = (uint64_t)found.st_mtime,
				.mode = is_file ? S_IFREG | 0444 : S_IFDIR | 0555,
				.nlink = 1,
				.uid = getuid(),
				.gid = getgid(),
				.blksize = BLOCK,
			},
		},
	};
}

static bool is_directory(const struct node *node)
{
	return S_ISDIR(node->entry.attr.mode);
}

static int is_child(const struct dirent *one)
{
	return strcmp(one->d_name, ".") != 0 && strcmp(one->d_name, "..") != 0;
}

static int by_name(const struct dirent **one, const struct dirent **other)
{
	return strcmp((*one)->d_name, (*other)->d_name);
}

static void read_directory(struct tree *tree, size_t at)
{
	const char *path = tree->nodes[at].path;
	struct dirent **children;
	int count = scandir(path, &children, is_child, by_name);
	if (count < 0)
		die("%s: %s", path, strerror(errno));
	tree->nodes[at].first = tree->count;
	tree->nodes[at].count = (size_t)count;
	for (int number = 0; number < count; number++) {
		char *child;
		if (asprintf(&child, "%s/%s", path, children[number]->d_name) < 0)
			die("no memory");
		add(tree, child);
		free(children[number]);
	}
	free(children);
}

static void read_file(struct node *node)
{
	size_t size = node->entry.attr.size, done = 0;
	int file = open(node->path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		die("%s: %s", node->path, strerror(errno));
	node->bytes = allocated(malloc(size + 1));
	while (done < size) {
		ssize_t more = read(file, node->bytes + done, size - done);
		if (more < 0)
			die("%s: %s", node->path, strerror(errno));
		if (more == 0)
			die("%s became shorter", node->path);
		done += (size_t)more;
	}
	close(file);
}

static struct tree read_tree(const char *root)
{
	struct tree tree = {0};
	add(&tree, allocated(strdup(root)));
	if (!is_directory(&tree.nodes[0]))
		die("%s is no directory", root);
	for (size_t at = 0; at < tree.count; at++) { /* which grows by the children of each directory */
		if (is_directory(&tree.nodes[at]))
			read_directory(&tree, at);
		else
			read_file(&tree.nodes[at]);
	}
	return tree;
}

/* -- the answers */

static void answer(int device, const struct request *request, int error, const void *body, size_t size)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof header + size), .error = -error, .unique = request->header->unique};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)body, size}};
	/* ENOENT: whoever asked was killed.  ENODEV: the mount has ended, which the next read tells. */
	if (writev(device, parts, size ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV)
		fprintf(stderr, "floor: answering request %u: %s\n", request->header->opcode, strerror(errno));
}

static void refuse(int device, const struct request *request, int error)
{
	answer(device, request, error, NULL, 0);
}

static void initiate(int device, const struct request *request)
{
	const struct fuse_init_in *asked = request->body;
	struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = PROTOCOL_MINOR};
	if (request->size < offsetof(struct fuse_init_in, flags) + sizeof asked->flags)
		die("INIT of %zu bytes: this kernel is too old", request->size);
	if (asked->major <= FUSE_KERNEL_VERSION) { /* a newer kernel asks again */
		if (asked->major < FUSE_KERNEL_VERSION || (asked->flags & NEEDED) != NEEDED)
			die("this kernel cannot do without OPEN, OPENDIR or READDIR");
		out.max_readahead = READ_AHEAD;
		out.flags = asked->flags & WANTED;
		out.max_background = BACKGROUND;
		out.congestion_threshold = BACKGROUND * 3 / 4;
		out.max_write = BLOCK;
		out.time_gran = 1;
		out.max_pages = REPLY_PAGES;
	}
	answer(device, request, 0, &out, sizeof out);
}

static int against_name(const void *name, const void *node)
{
	return strcmp(name, ((const struct node *)node)->name);
}

static void lookup(int device, const struct request *request, const struct tree *tree, const struct node *parent)
{
	static const struct fuse_entry_out absent = {.entry_valid = FOREVER};
	const char *name = request->body;
	if (!is_directory(parent)) {
		refuse(device, request, ENOTDIR);
	} else if (request->size == 0 || name[request->size - 1] != '\0') {
		refuse(device, request, EINVAL);
	} else {
		const struct node *found =
			bsearch(name, tree->nodes + parent->first, parent->count, sizeof *found, against_name);
		answer(device, request, 0, found ? &found->entry : &absent, sizeof absent);
	}
}

static void getattr(int device, const struct request *request, const struct node *node)
{
	struct fuse_attr_out out = {.attr_valid = FOREVER, .attr = node->entry.attr};
	answer(device, request, 0, &out, sizeof out);
}

static void read_bytes(int device, const struct request *request, const struct node *node)
{
	const struct fuse_read_in *asked = request->body;
	if (is_directory(node)) {
		refuse(device, request, EISDIR);
	} else if (request->size < sizeof *asked) {
		refuse(device, request, EINVAL);
	} else {
		uint64_t size = node->entry.attr.size, offset = asked->offset < size ? asked->offset : size;
		uint64_t left = size - offset;
		answer(device, request, 0, node->bytes + offset, left < asked->size ? left : asked->size);
	}
}

/* The position of an entry is its number among the children of its directory, from one on. */
static void list(int device, const struct request *request, const struct tree *tree, const struct node *node)
{
	static char out[LISTED] __attribute__((aligned(8)));
	const struct fuse_read_in *asked = request->body;
	bool with_entries = request->header->opcode == FUSE_READDIRPLUS;
	if (!is_directory(node) || request->size < sizeof *asked) {
		refuse(device, request, is_directory(node) ? EINVAL : ENOTDIR);
		return;
	}
	size_t room = asked->size < LISTED ? asked->size : LISTED, used = 0;
	for (uint64_t at = asked->offset; at < node->count; at++) {
		const struct node *child = &tree->nodes[node->first + at];
		size_t name_size = strlen(child->name);
		size_t start = with_entries ? sizeof child->entry : 0;
		size_t size = start + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_size);
		if (size > room - used)
			break;
		struct fuse_dirent *head = (struct fuse_dirent *)(out + used + start);
		memset(out + used + size - 8, 0, 8); /* what pads the name */
		memcpy(out + used, &child->entry, start);
		head->ino = child->entry.attr.ino;
		head->off = at + 1;
		head->namelen = (uint32_t)name_size;
		head->type = child->entry.attr.mode >> 12;
		memcpy(head->name, child->name, name_size);
		used += size;
	}
	answer(device, request, 0, out, used);
}

static void act(int device, const struct request *request, const struct tree *tree)
{
	const struct fuse_in_header *header = request->header;
	const struct node *node = NULL;
	switch (header->opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		if (header->nodeid == 0 || header->nodeid > tree->count) {
			refuse(device, request, ESTALE);
			return;
		}
		node = &tree->nodes[header->nodeid - 1];
	}
	switch (header->opcode) {
	case FUSE_LOOKUP:
		lookup(device, request, tree, node);
		break;
	case FUSE_GETATTR:
		getattr(device, request, node);
		break;
	case FUSE_READ:
		read_bytes(device, request, node);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		list(device, request, tree, node);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET: /* all is kept, and these have no answer */
		break;
	case FUSE_INIT:
		initiate(device, request);
		break;
	case FUSE_STATFS: {
		struct fuse_statfs_out out = {.st = {.bsize = BLOCK, .frsize = BLOCK, .namelen = 255}};
		answer(device, request, 0, &out, sizeof out);
		break;
	}
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_DESTROY:
		answer(device, request, 0, NULL, 0);
		break;
	default: /* OPEN and OPENDIR too: then the kernel does without */
		refuse(device, request, ENOSYS);
	}
}

/* -- the mount */

static int mount_on(const char *point, const char *source)
{
	char options[128];
	int device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (device < 0)
		die("/dev/fuse: %s", strerror(errno));
	snprintf(options, sizeof options, "fd=%d,rootmode=%o,user_id=%u,group_id=%u,default_permissions", device,
		 S_IFDIR, getuid(), getgid());
	if (mount(source, point, "fuse.floor", MS_RDONLY | MS_NOSUID | MS_NODEV, options) != 0)
		die("mounting on %s: %s", point, strerror(errno));
	mounted_on = point;
	return device;
}

static void unmount(void)
{
	if (mounted_on != NULL && umount2(mounted_on, MNT_DETACH) != 0)
		fprintf(stderr, "floor: unmounting %s: %s\n", mounted_on, strerror(errno));
}

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool has_processor_for_programs(void)
{
	cpu_set_t ours;
	return sched_getaffinity(0, sizeof ours, &ours) != 0 || CPU_COUNT(&ours) > 1;
}

/* Answer until the mount has ended, or a signal has come, which `awake` lets through while it sleeps. */
static void serve(int device, const struct tree *tree, const sigset_t *awake)
{
	static char buffer[FUSE_MIN_READ_BUFFER] __attribute__((aligned(8)));
	const struct fuse_in_header *header = (const void *)buffer;
	uint64_t spin = has_processor_for_programs() ? SPIN_NS : 0, spins_until = 0;
	while (!is_told_to_end) {
		ssize_t size = read(device, buffer, sizeof buffer);
		if (size >= 0) {
			if ((size_t)size < sizeof *header || header->len != (size_t)size)
				die("%zd bytes are no request", size);
			struct request request = {header, header + 1, (size_t)size - sizeof *header};
			act(device, &request, tree);
			spins_until = now_ns() + spin;
		} else if (errno == EAGAIN) {
			struct pollfd one = {.fd = device, .events = POLLIN};
			if (now_ns() < spins_until)
				sched_yield(); /* whoever will ask may have to run on this very processor */
			else if (ppoll(&one, 1, NULL, awake) < 0 && errno != EINTR)
				die("waiting: %s", strerror(errno));
		} else if (errno == ENODEV) {
			mounted_on = NULL;
			return;
		} else if (errno != EINTR && errno != ENOENT) { /* ENOENT: it was taken back */
			die("reading a request: %s", strerror(errno));
		}
	}
}

static void take_note(int number)
{
	(void)number;
	is_told_to_end = 1;
}

int main(int count, char **words)
{
	if (count != 3) {
		fputs("usage: floor DIRECTORY POINT\n", stderr);
		return 2;
	}
	sigset_t ends, awake;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, &awake);
	sigdelset(&awake, SIGTERM);
	sigdelset(&awake, SIGINT);
	struct sigaction noting = {.sa_handler = take_note};
	sigaction(SIGTERM, &noting, NULL);
	sigaction(SIGINT, &noting, NULL);

	const struct tree tree = read_tree(words[1]);
	const char *point = realpath(words[2], NULL);
	if (point == NULL)
		die("%s: %s", words[2], strerror(errno));
	atexit(unmount);
	int device = mount_on(point, words[1]);
	printf("floor: %s shows %s, %zu files and directories\n", point, words[1], tree.count);
	fflush(stdout);
	serve(device, &tree, &awake);
	return 0;
}
