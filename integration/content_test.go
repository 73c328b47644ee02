package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// content is an endless stream of bytes that follows from its number alone, so that a file of any size can be written
// and compared without a second copy. No two pages of it are equal, and it does not compress.
type content struct{ *rand.ChaCha8 }

func newContent(number int) content {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(number))
	return content{rand.NewChaCha8(seed)}
}

// writeContent makes a file of size bytes and says at which point that failed: at open, write, fsync or close.
func writeContent(name string, number int, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(newContent(number), size), make([]byte, 256<<10)); err != nil {
		f.Close()
		return fmt.Errorf("write: %w", err)
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return fmt.Errorf("fsync: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// errOtherBytes says that a file was read without an error and had other bytes than were written: the one thing that
// must never happen.
var errOtherBytes = errors.New("other bytes than were written")

// compareContent reads a file and reports how it differs from what writeContent wrote; nil if it does not.
func compareContent(name string, number int, size int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	want := newContent(number)
	got, exp := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); off < size; {
		n := min(size-off, int64(len(got)))
		if _, err := io.ReadFull(f, got[:n]); err != nil {
			return fmt.Errorf("%s: at %d of %d: %w", name, off, size, err)
		}
		want.Read(exp[:n])
		if !bytes.Equal(got[:n], exp[:n]) {
			at := firstDifference(got[:n], exp[:n])
			return fmt.Errorf("%s: %w at %d: % x, want % x", name, errOtherBytes, off+int64(at),
				got[at:min(int(n), at+16)], exp[at:min(int(n), at+16)])
		}
		off += n
	}
	if n, _ := f.Read(got[:1]); n != 0 {
		return fmt.Errorf("%s: longer than the %d bytes written", name, size)
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// wantContent fails the test unless the file holds exactly what writeContent wrote.
func wantContent(t testing.TB, name string, number int, size int64) {
	t.Helper()
	if err := compareContent(name, number, size); err != nil {
		t.Error(err)
	}
}

// block is n bytes of a content.
func block(number, n int) []byte {
	b := make([]byte, n)
	newContent(number).Read(b)
	return b
}
