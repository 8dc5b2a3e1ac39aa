// Peers: the storages of Flux's image-reflector-controller, each driven in one process as the benchmark drives tagfs's.
//
//	peers [-durable] [-threshold KIB] flux|badger set|get|digest INPUT STORE
//
// INPUT holds the lists as plain files, NAMESPACE/NAME/tags.txt.  `set` sets the tags of each, in the order of their
// paths; `get` asks for the tags of each; `digest` does and prints the SHA-256 of all that it was given.  What it cost
// goes to standard output as JSON: CPU and wall-clock seconds, the peak of resident memory, bytes written.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type key struct{ namespace, name string }

type database interface {
	SetTags(key key, tags []string) error
	Tags(key key) ([]string, error)
	Close() error
}

type cost struct {
	CPU     float64 `json:"cpu_s"`
	Wall    float64 `json:"wall_s"`
	Peak    int64   `json:"peak_kib"`
	Written int64   `json:"written"`
	Digest  string  `json:"digest,omitempty"`
}

func main() {
	isDurable := flag.Bool("durable", false, "a list that was set is on the disk")
	threshold := flag.Int("threshold", 64, "KiB from which on Flux compresses")
	flag.Parse()
	if flag.NArg() != 4 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(flag.Arg(0), flag.Arg(1), flag.Arg(2), flag.Arg(3), *threshold<<10, *isDurable); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(side, work, input, store string, threshold int, isDurable bool) error {
	keys, err := keysOf(input)
	if err != nil {
		return err
	}
	began, cpu := time.Now(), cpuSeconds()
	db, err := open(side, store, threshold, isDurable)
	if err != nil {
		return err
	}
	digest := sha256.New()
	for _, key := range keys {
		if err := step(db, work, input, key, digest); err != nil {
			return fmt.Errorf("%s/%s: %w", key.namespace, key.name, err)
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	result := cost{CPU: cpuSeconds() - cpu, Wall: time.Since(began).Seconds()}
	result.Peak = field("/proc/self/status", "VmHWM:")
	result.Written = field("/proc/self/io", "write_bytes:")
	if work == "digest" {
		result.Digest = fmt.Sprintf("%x", digest.Sum(nil))
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func open(side, store string, threshold int, isDurable bool) (database, error) {
	switch side {
	case "flux":
		return openFlux(store, threshold, isDurable)
	case "badger":
		return openBadger(store, isDurable)
	}
	return nil, fmt.Errorf("no side %q", side)
}

func step(db database, work, input string, key key, digest hash.Hash) error {
	if work == "set" {
		plain, err := os.ReadFile(filepath.Join(input, key.namespace, key.name, plainName))
		if err != nil {
			return err
		}
		return db.SetTags(key, strings.Split(strings.TrimSuffix(string(plain), "\n"), "\n"))
	}
	tags, err := db.Tags(key)
	if err == nil && work == "digest" {
		for _, tag := range tags {
			digest.Write([]byte(tag + "\n"))
		}
	}
	return err
}

func keysOf(input string) ([]key, error) {
	paths, err := filepath.Glob(filepath.Join(input, "*", "*", plainName))
	sort.Strings(paths)
	keys := make([]key, 0, len(paths))
	for _, path := range paths {
		directory := filepath.Dir(path)
		keys = append(keys, key{filepath.Base(filepath.Dir(directory)), filepath.Base(directory)})
	}
	return keys, err
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

// field is the number after a name in one of the kernel's files about this process.
func field(path, name string) int64 {
	text, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(text), "\n") {
		if rest, found := strings.CutPrefix(line, name); found {
			number, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return number
		}
	}
	return -1
}
