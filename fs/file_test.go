package fs

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestReadReply: a reply has the bytes in one piece and in slices, and ends at the end of the file.
func TestReadReply(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i / 7)
	}
	k.must(k.write(id, fh, 5000, data, 0), "write")
	want := append(make([]byte, 5000), data...)
	for _, off := range []int{0, 1, 4095, 4096, 5000, 200_000, len(want) - 1} {
		if got := k.read(id, fh, int64(off), 1<<20); !bytes.Equal(got, want[off:]) {
			t.Fatalf("read at %d: %d bytes that are not those written", off, len(got))
		}
		buf := make([]byte, 10_000)
		result, st := k.Read(nil, &fuse.ReadIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Size: 10_000}, buf)
		k.must(st, "read")
		got, _ := result.Bytes(buf)
		if end := min(off+10_000, len(want)); !bytes.Equal(got, want[off:end]) || result.Size() != len(got) {
			t.Fatalf("read in one piece at %d: %d bytes of %d that are not those written", off, len(got), result.Size())
		}
		result.Done()
	}
	for _, off := range []int64{int64(len(want)), 1 << 40, math.MaxInt64} {
		if got := k.read(id, fh, off, 4096); len(got) != 0 {
			t.Errorf("read at %d: %d bytes past the end", off, len(got))
		}
	}
	k.must(k.setattr(id, fuse.FATTR_SIZE, func(in *fuse.SetAttrIn) { in.Size = math.MaxInt64 }), "truncate to 8 EiB - 1")
	if got := k.read(id, fh, math.MaxInt64&^4095, 4096); len(got) != 4095 {
		t.Errorf("read of the last page of the largest file: %d bytes, want 4095", len(got))
	}
	_, st := k.Read(nil, &fuse.ReadIn{InHeader: header(id), Fh: fh, Offset: 1 << 63, Size: 1}, make([]byte, 1))
	k.want(st, fuse.EINVAL, "read beyond every file")
	k.want(k.write(id, fh, math.MinInt64, []byte("x"), 0), efbig, "write beyond every file")
}

// TestRefusedWrite: what the host sends from its cache and we cannot take is reported once to every descriptor that could
// have written it, and to no other.
func TestRefusedWrite(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	kept := bytes.Repeat([]byte("kept"), 1024)
	k.must(k.write(id, fh, 0, kept, fuse.WRITE_CACHE), "write")
	second, reader, told := k.open(id, syscall.O_WRONLY), k.open(id, syscall.O_RDONLY), k.open(id, syscall.O_WRONLY)
	ask := func(fh uint64) fuse.Status { // as before a write(2)
		in := fuse.GetAttrIn{InHeader: header(id), Flags_: fuse.FUSE_GETATTR_FH, Fh_: fh}
		return k.GetAttr(nil, &in, new(fuse.AttrOut))
	}
	k.want(ask(told), fuse.OK, "write(2) before")

	block, refused := make([]byte, 1<<20), fuse.OK
	off := int64(1 << 20)
	for ; refused.Ok() && off < 1<<30; off += 1 << 20 {
		refused = k.write(id, fh, off, block, fuse.WRITE_CACHE)
	}
	k.want(refused, enospc, "filling the mount")
	late := k.open(id, syscall.O_RDWR)
	k.want(ask(told), enospc, "the next write(2)")
	k.want(ask(told), fuse.OK, "the one after")
	k.want(ask(fh), fuse.OK, "write(2), or read(2) at the end")
	for _, c := range []struct {
		what        string
		fh          uint64
		first, then fuse.Status
	}{
		{"the writer", fh, enospc, fuse.OK},
		{"another that could have written", second, enospc, fuse.OK},
		{"one that write(2) told", told, fuse.OK, fuse.OK},
		{"a reader", reader, fuse.OK, fuse.OK},
		{"one that came later", late, fuse.OK, fuse.OK},
	} {
		k.want(k.flush(id, c.fh), c.first, "first flush of %s", c.what)
		k.want(k.flush(id, c.fh), c.then, "second flush of %s", c.what)
	}
	if n := k.sys.Snapshot().Counters.RefusedWrites; n == 0 {
		t.Error("the manager was not told which range the host must forget")
	}
	if !bytes.Equal(k.read(id, fh, 0, len(kept)), kept) {
		t.Error("what was accepted before is lost")
	}

	// A program that writes past the host's cache hears of it at once, and of what it could write.
	in := fuse.WriteIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Size: 1 << 20, Flags: syscall.O_DIRECT,
		WriteFlags: fuse.WRITE_LOCKOWNER}
	_, st := k.Writev(nil, &in, [][]byte{block})
	k.want(st, enospc, "direct write")
	k.want(k.flush(id, fh), fuse.OK, "flush after a direct write")
	in.Offset = 0
	n, st := k.Writev(nil, &in, [][]byte{kept, block, block})
	if !st.Ok() || int(n) != len(kept) {
		t.Errorf("a direct write that did not fit as a whole: %d bytes, %v; want %d", n, st, len(kept))
	}
	for _, fh := range []uint64{fh, second, reader, told, late} {
		k.release(id, fh)
	}
}

// TestFallocate: the modes that tmpfs has.
func TestFallocate(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 0, bytes.Repeat([]byte{1}, 64<<10), 0), "write")
	for _, c := range []struct {
		what         string
		mode         uint32
		off, length  uint64
		want         fuse.Status
		size, blocks uint64 // afterwards
	}{
		{"punch without keep", unix.FALLOC_FL_PUNCH_HOLE, 0, 4096, fuse.ENOTSUP, 64 << 10, 128},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, fuse.ENOTSUP, 64 << 10, 128},
		{"nothing", 0, 0, 0, fuse.EINVAL, 64 << 10, 128},
		{"too far", 0, math.MaxInt64, 1, efbig, 64 << 10, 128},
		{"negative", 0, 1 << 63, 1, fuse.EINVAL, 64 << 10, 128},
		{"punch", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 0, 32 << 10, fuse.OK, 64 << 10, 64},
		{"allocate beyond, keep", unix.FALLOC_FL_KEEP_SIZE, 64 << 10, 4096, fuse.OK, 64 << 10, 72},
		{"zero", unix.FALLOC_FL_ZERO_RANGE, 0, 8192, fuse.OK, 64 << 10, 88},
		{"allocate beyond", 0, 64 << 10, 8192, fuse.OK, 72 << 10, 96},
	} {
		in := fuse.FallocateIn{InHeader: header(id), Fh: fh, Offset: c.off, Length: c.length, Mode: c.mode}
		k.want(k.Fallocate(nil, &in), c.want, "%s", c.what)
		if a := k.attr(id); a.Size != c.size || a.Blocks != c.blocks {
			t.Errorf("%s: size %d, %d blocks; want %d, %d", c.what, a.Size, a.Blocks, c.size, c.blocks)
		}
	}
	got := k.read(id, fh, 0, 72<<10)
	want := append(make([]byte, 32<<10), bytes.Repeat([]byte{1}, 32<<10)...)
	if !bytes.Equal(got, append(want, make([]byte, 8<<10)...)) {
		t.Error("the bytes are not what is left")
	}
	k.release(id, fh)
}

// TestSeek: data and holes, as the section has them.
func TestSeek(t *testing.T) {
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	k.must(k.write(id, fh, 1<<20, []byte("data"), 0), "write")
	k.release(id, fh)
	for _, c := range []struct {
		off    uint64
		whence uint32
		want   uint64
		st     fuse.Status
	}{
		{0, unix.SEEK_DATA, 1 << 20, fuse.OK},
		{0, unix.SEEK_HOLE, 0, fuse.OK},
		{1 << 20, unix.SEEK_HOLE, 1<<20 + 4, fuse.OK},
		{1<<20 + 4, unix.SEEK_DATA, 0, enxio},
		{1 << 63, unix.SEEK_DATA, 0, enxio},
		{0, unix.SEEK_SET, 0, fuse.EINVAL},
	} {
		var out fuse.LseekOut
		st := k.Lseek(nil, &fuse.LseekIn{InHeader: header(id), Offset: c.off, Whence: c.whence}, &out)
		if st != c.st || out.Offset != c.want {
			t.Errorf("lseek %d, %d: %d, %v; want %d, %v", c.off, c.whence, out.Offset, st, c.want, c.st)
		}
	}
}

// TestContentsAsNative does the same to a file and to one of the host's, at random.
func TestContentsAsNative(t *testing.T) {
	native, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer native.Close()
	k := newKernel(t)
	id, fh := k.mustCreate(root, "f")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const most = 256 << 10
	for i := range 300 {
		off := r.Int64N(most)
		switch r.IntN(5) {
		case 0, 1:
			data := make([]byte, r.IntN(50_000))
			for j := range data {
				data[j] = byte(r.Uint32())
			}
			k.must(k.write(id, fh, off, data, uint32(i%2)), "write")
			if _, err := native.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
		case 2:
			k.must(k.setattr(id, fuse.FATTR_SIZE, func(in *fuse.SetAttrIn) { in.Size = uint64(off) }), "truncate")
			if err := native.Truncate(off); err != nil {
				t.Fatal(err)
			}
		default:
			length := 1 + r.Int64N(100_000)
			mode := []uint32{unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 0}[r.IntN(3)]
			in := fuse.FallocateIn{InHeader: header(id), Fh: fh, Offset: uint64(off), Length: uint64(length), Mode: mode}
			k.must(k.Fallocate(nil, &in), "fallocate")
			if err := syscall.Fallocate(int(native.Fd()), mode, off, length); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(native.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := k.read(id, fh, 0, 4<<20); !bytes.Equal(got, want) || k.attr(id).Size != uint64(len(want)) {
			t.Fatalf("step %d: %d bytes that are not the host's %d", i, len(got), len(want))
		}
	}
	k.release(id, fh)
}
