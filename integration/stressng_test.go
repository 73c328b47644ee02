package integration

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stressNG are stress-ng's stressors that do something with files and directories, or with mappings of files.
const stressNG = "access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify fcntl " +
	"file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf " +
	"lockofd mincore mknod mmap mmapmany mremap msync msyncmany munmap open readahead rename revio rmap seek sendfile splice " +
	"symlink sync-file tee touch utime verity xattr aio aiol"

// stressNGBytes keeps each stressor's files to a size of which a mount of 16M pages, but has room for.
const stressNGBytes = "--mmap-file --mmap-bytes 8M --hdd-bytes 8M --iomix-bytes 8M --msync-bytes 8M --fallocate-bytes 8M " +
	"--copy-file-bytes 128M --readahead-bytes 8M --seek-size 8M --sync-file-bytes 8M --mremap-bytes 8M --dirdeep-inodes 500 " +
	"--dentries 200"

// stressNGRun runs the stressors all at once for so many seconds. stress-ng leaves nothing behind when all went well.
func stressNGRun(t *testing.T, dir string, seconds int) {
	t.Helper()
	args := []string{"--temp-path", dir, "--verify", "--timeout", strconv.Itoa(seconds)}
	for _, s := range strings.Fields(stressNG) {
		args = append(args, "--"+s, "1")
	}
	run(t, dir, "stress-ng", append(args, strings.Fields(stressNGBytes)...)...)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the directory: %v %v", left, err)
	}
}

// TestStressNG has fifty stressors of stress-ng at work in one mount, which verify what they read, while everything is
// trimmed.
func TestStressNG(t *testing.T) {
	seconds := short(6, 3)
	t.Run("tmpfs", func(t *testing.T) { stressNGRun(t, mountTmpfs(t, "size=512M"), seconds) })
	t.Run("16M", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "16M", pageFile: "512M"})
		defer m.trimLoop(50 * time.Millisecond)()
		stressNGRun(t, m.dir, seconds)
	})
}
