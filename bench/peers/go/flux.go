package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fluxcd/pkg/apis/meta"
	artifact "github.com/fluxcd/pkg/artifact/storage"
)

const (
	plainName = "tags.txt"
	gzipName  = "tags.txt.gz"
)

// fluxFiles calls Flux's artifact storage as its image-reflector-controller does with the gate FluxStorage: gzip at the
// best level from a threshold on, a temporary file renamed into place, no fsync, the other variant removed.
//
// Flux has no way to make a list durable.  With isDurable an fsync of the file and of its directory follows.
type fluxFiles struct {
	storage   artifact.Storage
	threshold int
	isDurable bool
}

// openFlux opens the storage, and marks a new one with its format first, as Flux does.
func openFlux(path string, threshold int, isDurable bool) (*fluxFiles, error) {
	version := filepath.Join(path, ".storage-version")
	if _, err := os.Stat(version); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(version, []byte("2\n"), 0o600); err != nil {
			return nil, err
		}
		if err := errors.Join(syncPath(version), syncPath(path)); err != nil {
			return nil, err
		}
	}
	return &fluxFiles{artifact.Storage{BasePath: path}, threshold, isDurable}, nil
}

func (f *fluxFiles) artifact(key key, name string) meta.Artifact {
	return meta.Artifact{Path: artifact.ArtifactPath("ImageRepository", key.namespace, key.name, name)}
}

func (f *fluxFiles) SetTags(key key, tags []string) error {
	var plain bytes.Buffer
	for _, tag := range tags {
		plain.WriteString(tag)
		plain.WriteByte('\n')
	}
	_ = fmt.Sprintf("sha256:%x", sha256.Sum256(plain.Bytes())) // the revision, which the controller keeps
	name, other, payload := plainName, gzipName, plain.Bytes()
	if plain.Len() >= f.threshold {
		name, other = gzipName, plainName
		var packed bytes.Buffer
		writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := writer.Write(plain.Bytes()); err != nil {
			return err
		}
		if err := writer.Close(); err != nil {
			return err
		}
		payload = packed.Bytes()
	}
	file := f.artifact(key, name)
	if err := f.storage.MkdirAll(file); err != nil {
		return err
	}
	if err := f.storage.AtomicWriteFile(&file, bytes.NewReader(payload), 0o600); err != nil {
		return err
	}
	if err := os.Remove(f.storage.LocalPath(f.artifact(key, other))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !f.isDurable {
		return nil
	}
	path := f.storage.LocalPath(file)
	return errors.Join(syncPath(path), syncPath(filepath.Dir(path)))
}

func (f *fluxFiles) Tags(key key) ([]string, error) {
	// Both variants are looked at, and the newer one is read.
	plainPath := f.storage.LocalPath(f.artifact(key, plainName))
	gzipPath := f.storage.LocalPath(f.artifact(key, gzipName))
	plain, plainErr := os.Stat(plainPath)
	packed, packedErr := os.Stat(gzipPath)
	isPacked := packedErr == nil && (plainErr != nil || !plain.ModTime().After(packed.ModTime()))
	path := plainPath
	if isPacked {
		path = gzipPath
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var reader io.Reader = file
	if isPacked {
		if reader, err = gzip.NewReader(file); err != nil {
			return nil, err
		}
	}
	scanner := bufio.NewScanner(reader)
	scanner.Buffer(make([]byte, 0, 256), 1024)
	tags := []string{}
	for scanner.Scan() {
		tags = append(tags, scanner.Text())
	}
	return tags, scanner.Err()
}

func (f *fluxFiles) Close() error { return nil }

func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
