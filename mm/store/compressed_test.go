package store_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"memfs/mm/store"
)

// textPage is a page that compresses, the better the fewer kinds of bytes it has.
func textPage(rnd *rand.Rand, kinds int) []byte {
	page := make([]byte, store.SlotSize)
	for i := range page {
		page[i] = byte(rnd.IntN(kinds))
	}
	return page
}

func somePage(rnd *rand.Rand) []byte {
	switch rnd.IntN(4) {
	case 0:
		return bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, byte(rnd.IntN(256))}, store.SlotSize/8)
	case 1:
		return textPage(rnd, 256) // noise
	default:
		page := textPage(rnd, 1+rnd.IntN(8))
		copy(page[rnd.IntN(store.SlotSize):], textPage(rnd, 256)[:rnd.IntN(store.SlotSize)])
		return page
	}
}

// TestCompressed plays random writes, reads and discards against a map, with each codec, and sees that all memory is back
// at the end.
func TestCompressed(t *testing.T) {
	for _, codec := range store.Codecs {
		t.Run(codec, func(t *testing.T) {
			const slots = 500
			rnd := rand.New(rand.NewPCG(1, 2))
			c := newCompressed(t, codec, 1<<20)
			if err := c.Grow(slots); err != nil {
				t.Fatal(err)
			}
			held := make(map[uint64][]byte)
			var rejected, full uint64
			for range 4000 {
				slot := rnd.Uint64N(slots)
				page, ok := held[slot]
				if ok && rnd.IntN(2) == 0 {
					got := blank(1)
					if err := c.ReadSlots(slot, got); err != nil || !bytes.Equal(got[0], page) {
						t.Fatalf("slot %d: %v, or other bytes", slot, err)
					}
					continue
				}
				if ok {
					if err := c.Discard(slot, 1); err != nil {
						t.Fatal(err)
					}
					delete(held, slot)
					continue
				}
				page = somePage(rnd)
				switch err := c.WriteSlots(slot, [][]byte{page}); {
				case err == nil:
					held[slot] = page
				case errors.Is(err, store.ErrIncompressible):
					rejected++
				case errors.Is(err, unix.ENOSPC):
					full++
				default:
					t.Fatal(err)
				}
				if u := c.Usage(); u.Pages != uint64(len(held)) || u.Memory < u.Bytes || u.Memory > 1<<20 || u.Rejected != rejected {
					t.Fatalf("usage is %+v with %d pages held, %d rejected", u, len(held), rejected)
				}
			}
			if len(held) == 0 || rejected == 0 {
				t.Fatalf("%d pages held, %d rejected: the test needs both", len(held), rejected)
			}
			if err := c.Discard(0, slots); err != nil {
				t.Fatal(err)
			}
			if u := c.Usage(); u.Pages != 0 || u.Memory != 0 || u.Bytes != 0 || u.Same != 0 {
				t.Errorf("usage is %+v when all is discarded", u)
			}
		})
	}
}

func newCompressed(t *testing.T, codec string, memory uint64) *store.Compressed {
	t.Helper()
	c, err := store.NewCompressed(codec, memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestCompressedFull: a store without memory left says so and keeps what it has.
func TestCompressedFull(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	c := newCompressed(t, "s2", 64<<10)
	if err := c.Grow(1000); err != nil {
		t.Fatal(err)
	}
	var held [][]byte
	for slot := uint64(0); ; slot++ {
		page := textPage(rnd, 4)
		err := c.WriteSlots(slot, [][]byte{page})
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, page)
	}
	if len(held) < 20 {
		t.Errorf("64 KiB held %d pages only", len(held))
	}
	for slot, page := range held {
		got := blank(1)
		if err := c.ReadSlots(uint64(slot), got); err != nil || !bytes.Equal(got[0], page) {
			t.Fatalf("slot %d: %v, or other bytes", slot, err)
		}
	}
	if err := c.ReadSlots(uint64(len(held)), blank(1)); err == nil {
		t.Error("a slot that holds nothing could be read")
	}
	if err := c.WriteSlots(0, [][]byte{held[0]}); err == nil {
		t.Error("a slot that holds a page could be written")
	}
	if err := c.WriteSlots(1000, [][]byte{held[0]}); err == nil {
		t.Error("a slot outside could be written")
	}
}

// TestCompressedConcurrent has goroutines use slots of their own at once.
func TestCompressedConcurrent(t *testing.T) {
	c := newCompressed(t, "zstd", 4<<20)
	if err := c.Grow(400); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 5))
			for i := range uint64(500) {
				slot, page, got := w*100+i%100, textPage(rnd, 1+int(i%4)), blank(1)
				if err := c.WriteSlots(slot, [][]byte{page}); err != nil {
					t.Error(err)
					return
				}
				if err := c.ReadSlots(slot, got); err != nil || !bytes.Equal(got[0], page) {
					t.Errorf("slot %d: %v, or other bytes", slot, err)
				}
				if err := c.Discard(slot, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if u := c.Usage(); u.Memory != 0 {
		t.Errorf("left over: %+v", u)
	}
}

// BenchmarkCompressed writes, reads and discards a page of text.
func BenchmarkCompressed(b *testing.B) {
	for _, codec := range store.Codecs {
		c, err := store.NewCompressed(codec, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Grow(10)
		text := bytes.Repeat([]byte("The page frame number database says of each frame what it is used for. "), 60)
		page := [][]byte{text[:store.SlotSize]}
		got := [][]byte{make([]byte, store.SlotSize)}
		b.Run(codec+"/write", func(b *testing.B) {
			b.SetBytes(store.SlotSize)
			for b.Loop() {
				if err := c.WriteSlots(0, page); err != nil {
					b.Fatal(err)
				}
				_ = c.Discard(0, 1)
			}
		})
		_ = c.WriteSlots(0, page)
		b.Run(codec+"/read", func(b *testing.B) {
			b.SetBytes(store.SlotSize)
			for b.Loop() {
				if err := c.ReadSlots(0, got); err != nil {
					b.Fatal(err)
				}
			}
		})
		_ = c.Close()
	}
}
