"""What several tests of one layer need: disks that fail, stores that can be made anew, what other programs leave."""
