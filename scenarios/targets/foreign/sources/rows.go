// Puts rows into bbolt, each in a transaction of its own, or prints the keys that are there.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func mark(kind string, key int) {
	file, err := os.OpenFile(os.Getenv("CHAOS_MARKS"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	check(err)
	_, err = fmt.Fprintf(file, "\n{\"kind\": \"%s\", \"operation\": \"put\", \"key\": %d}\n", kind, key)
	check(err)
	check(file.Close())
}

func main() {
	last, err := strconv.Atoi(os.Args[1])
	check(err)
	store, err := bolt.Open("rows.bolt", 0o600, nil)
	check(err)
	for key := 1; key <= last; key++ {
		mark("intent", key)
		check(store.Update(func(tx *bolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists([]byte("rows"))
			if err != nil {
				return err
			}
			return bucket.Put([]byte(strconv.Itoa(key)), []byte(strings.Repeat("x", 5000)))
		}))
		mark("ack", key)
	}
	if last == 0 {
		check(store.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				return err
			}
			if bucket := tx.Bucket([]byte("rows")); bucket != nil {
				return bucket.ForEach(func(key, value []byte) error {
					fmt.Println(string(key), len(value))
					return nil
				})
			}
			return nil
		}))
	}
	check(store.Close())
}
