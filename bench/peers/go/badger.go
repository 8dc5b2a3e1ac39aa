package main

import (
	"encoding/json"
	"hash/adler32"

	"github.com/dgraph-io/badger/v4"
)

// badgerDatabase calls BadgerDB as Flux's image-reflector-controller does by default: its default options with value
// log files of 256 MiB, one transaction a list, a list as a JSON array.
type badgerDatabase struct{ db *badger.DB }

func openBadger(path string, isDurable bool) (*badgerDatabase, error) {
	options := badger.DefaultOptions(path).WithSyncWrites(isDurable).WithLoggingLevel(badger.ERROR)
	options.ValueLogFileSize = 1 << 28
	db, err := badger.Open(options)
	if err != nil {
		return nil, err
	}
	return &badgerDatabase{db}, nil
}

func (b *badgerDatabase) key(key key) []byte {
	return []byte("tags:registry.example/" + key.namespace + "/" + key.name)
}

func (b *badgerDatabase) SetTags(key key, tags []string) error {
	value, err := json.Marshal(tags)
	if err != nil {
		return err
	}
	_ = adler32.Checksum(value) // the revision, which the controller keeps
	return b.db.Update(func(transaction *badger.Txn) error {
		return transaction.SetEntry(badger.NewEntry(b.key(key), value))
	})
}

func (b *badgerDatabase) Tags(key key) (tags []string, err error) {
	err = b.db.View(func(transaction *badger.Txn) error {
		item, err := transaction.Get(b.key(key))
		if err != nil {
			return err
		}
		return item.Value(func(value []byte) error { return json.Unmarshal(value, &tags) })
	})
	return tags, err
}

func (b *badgerDatabase) Close() error { return b.db.Close() }
