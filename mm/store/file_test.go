package store

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// A transfer that ends early is taken up where it ended, by whole slots with direct I/O, and never runs past its end.
func TestShortTransfers(t *testing.T) {
	disk := make([]byte, 40*SlotSize)
	for i := range disk {
		disk[i] = byte(i * 2654435761 >> 13)
	}
	for _, direct := range []bool{false, true} {
		for _, limit := range []int{1 << 30, SlotSize, 3*SlotSize + 512, 2*SlotSize - 1, 9 * SlotSize} {
			calls := 0
			read := func(bufs [][]byte, off int64) (int, error) {
				if calls++; calls%3 == 0 {
					return -1, unix.EINTR
				}
				if direct && off%SlotSize != 0 {
					return -1, unix.EINVAL
				}
				n := 0
				for _, b := range bufs {
					if direct && len(b)%SlotSize != 0 {
						return -1, unix.EINVAL
					}
					n += copy(b[:min(len(b), limit-n)], disk[off+int64(n):])
				}
				return n, nil
			}
			bufs := [][]byte{alignedSlots(2), {}, alignedSlots(1), alignedSlots(7), {}}
			lengths := len(bufs[0]) + len(bufs[2]) + len(bufs[3])
			if err := transferAll(bufs, 5*SlotSize, direct, read); err != nil {
				t.Errorf("direct %v, %d bytes a call: %v", direct, limit, err)
			}
			if got := bytes.Join(bufs, nil); len(got) != lengths || !bytes.Equal(got, disk[5*SlotSize:15*SlotSize]) {
				t.Errorf("direct %v, %d bytes a call: other bytes", direct, limit)
			}
		}
	}
}

func TestTransferEnds(t *testing.T) {
	for want, answer := range map[error]func() (int, error){
		io.ErrUnexpectedEOF: func() (int, error) { return 0, nil },
		unix.EIO:            func() (int, error) { return -1, unix.EIO },
	} {
		err := transferAll([][]byte{alignedSlots(1)}, 0, true, func([][]byte, int64) (int, error) { return answer() })
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	// Less than a slot at a time is no way to do direct I/O.
	err := transferAll([][]byte{alignedSlots(1)}, 0, true, func([][]byte, int64) (int, error) { return 512, nil })
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v after 512 bytes", err)
	}
}
